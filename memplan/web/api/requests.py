"""What every operation asks of a request before it does anything."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from memplan.errors import UnknownNameError
from memplan.web.problems import Problem, ProblemError

_JSON = "application/json"
NOT_JSON = Problem(415, "unsupported_media_type", "the body must be sent as JSON", "Content-Type: application/json")


def unknown_parameter(name: str, allowed: Collection[str]) -> Problem:
    """What a query with another parameter than the allowed ones is answered."""
    hint = UnknownNameError("parameter", name, allowed).hint if allowed else "this address takes none"
    return Problem(422, "unknown_parameter", f"unknown parameter {name[:120]!r}", hint, name[:120])


def query_of(request: Request, allowed: Collection[str] = ()) -> dict[str, str]:
    """The query's parameters, each known and given once.

    Raises:
        ProblemError: another parameter, or one twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            raise ProblemError(unknown_parameter(name, allowed))
        if name in found:
            raise ProblemError(Problem(422, "invalid_value", f"{name} is given twice", "give it once", name))
        if not value:
            raise ProblemError(
                Problem(422, "invalid_value", f"{name} is empty", "leave it out, or give it a value", name)
            )
        found[name] = value
    return found


async def json_body_of(request: Request) -> bytes:
    """The body of a request that says it is JSON; still unread.

    Raises:
        ProblemError: another media type, or a query.
    """
    query_of(request)
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != _JSON or charset not in ("", "charset=utf-8"):
        raise ProblemError(NOT_JSON)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(Problem(415, "unsupported_media_type", "the body must be sent uncompressed"))
    return await request.body()
