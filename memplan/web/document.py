"""The OpenAPI document of a service: its limits, and samples that the serving code itself made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from memplan import __version__
from memplan.units import KIB, MIB
from memplan.web import limits
from memplan.web.api.requests import NOT_JSON, unknown_parameter
from memplan.web.errors import INTERNAL, problem_of_http
from memplan.web.patterns import MAX_PATTERN_LENGTH, MAX_PATTERNS, MAX_REPEATING_PATTERNS, MAX_UNBOUNDED_REPEATS
from memplan.web.problems import Problem
from memplan.web.recipes import MAX_LAYERS
from memplan.web.schemas import Schema
from memplan.web.settings import Settings
from memplan.web.work import LOST, OVERLOADED, TIMEOUT, checks_timeout

INTRODUCTION = """How much GPU memory a training run needs, where it goes, and whether it fits.

Every size is an integer of bytes. An answer to the same request is the same bytes as long as the version stays the same.

Unknown keys, keys given twice, and numbers in quotes are refused: a mistake never becomes the answer to another question.

Every answer carries an `X-Request-ID`: the one sent, where it is 1 to 64 letters, digits, dots, dashes and underscores, or a
new one. Every error is one envelope, `{"error": {"code", "message", "hint"?, "field"?, "request_id"}}`; `code` is stable.
"""
_REQUEST_ID = "9f86d081884c7d65"
_CUT = "the first entries; the answer has all"
_IS_CUT = frozenset({"models", "gpus", "methods", "optimizers", "accuracy"})


def limits_of(settings: Settings) -> list[tuple[str, str]]:
    """What the service takes at most, as (what, how much)."""
    return [
        ("body of a request", _size(settings.max_body_bytes)),
        ("body of a batch", _size(settings.max_batch_body_bytes)),
        ("query", _size(settings.max_query_bytes)),
        ("path", _size(limits.MAX_PATH_BYTES)),
        ("JSON", f"nested {settings.max_depth} deep"),
        ("recipes in a batch", f"{settings.max_batch:,}"),
        (
            "checks in a request",
            f"{settings.max_checks}, with {settings.max_explained} estimates to say what changed keys do",
        ),
        ("layers of a model", f"{MAX_LAYERS}, all its towers together"),
        ("names and patterns in a recipe", f"{MAX_PATTERNS}, each of {MAX_PATTERN_LENGTH} characters"),
        (
            "patterns with * or +",
            f"{MAX_REPEATING_PATTERNS} in a recipe, {MAX_UNBOUNDED_REPEATS} repeats in each; no repeated groups, lookaround or "
            "back references",
        ),
        ("time for an answer", f"{settings.timeout_seconds:g} s"),
        ("time for a plan or a report on checks", f"{settings.slow_timeout_seconds:g} s"),
        ("time for a batch", f"{settings.batch_timeout_seconds:g} s"),
        (
            "requests of a client",
            f"{settings.rate_limit:,} a minute" if settings.rate_limit is not None else "no limit",
        ),
    ]


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes % MIB == 0 else f"{size_bytes // KIB} KiB"


def description(settings: Settings) -> str:
    """What the document says first, the service's limits included."""
    rows = "\n".join(f"- {what}: {most}" for what, most in limits_of(settings))
    return f"{INTRODUCTION}\nLimits of this service, beyond which `memplan` on your own machine answers:\n\n{rows}\n"


def openapi_document(app: FastAPI, components: dict[str, Schema]) -> dict[str, Any]:
    """The whole document of an application, without samples.

    Args:
        app: the application.
        components: of `memplan.web.components`.
    """
    document = get_openapi(
        title="memplan",
        version=app.version,
        summary="GPU memory of training runs",
        description=description(app.state.settings),
        routes=app.routes,
        tags=[
            {"name": "answers", "description": "What a run needs."},
            {"name": "catalogue", "description": "What memplan knows."},
            {"name": "service", "description": "The service itself."},
        ],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": app.state.settings.root_path or "/"}],
    )
    document["components"] = {"schemas": components}
    return document


def add_samples(
    document: dict[str, Any],
    answers: Mapping[str, Any],
    problems: Mapping[str, Iterable[Problem]],
    settings: Settings,
    counters: str,
) -> None:
    """Put samples of answers and errors into a document.

    Args:
        document: of `openapi_document`.
        answers: of `memplan.web.samples`, by operation.
        problems: likewise.
        settings: the limits that errors speak of.
        counters: what `/metrics` answers; empty where there is none.
    """
    shown = {**answers, "healthz": {"status": "ok", "version": __version__}, "metrics": counters}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = operation["operationId"]
            (content,) = operation["responses"]["200"]["content"].values()
            summary = (
                _CUT if name in _IS_CUT else "the answer to the first example" if method == "post" else "the answer"
            )
            content["examples"] = {"sample": {"summary": summary, "value": shown[name]}}
            mistakes = [*problems.get(name, ()), *_refusals(path, operation, settings)]
            for status, answer in operation["responses"].items():
                if "application/json" in answer.get("content", {}) and int(status) >= 400:
                    answer["content"]["application/json"]["examples"] = _of_status(int(status), mistakes)


def _of_status(status: int, mistakes: Iterable[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for problem in mistakes:
        if problem.status == status:
            found.setdefault(problem.code, {"summary": problem.message, "value": problem.entry(_REQUEST_ID)})
    return found


def _refusals(path: str, operation: Mapping[str, Any], settings: Settings) -> list[Problem]:
    """What comes before an operation, whatever it is asked."""
    parameters = [entry["name"] for entry in operation.get("parameters", ()) if entry["in"] == "query"]
    return [
        problem_of_http(HTTPException(404)),
        problem_of_http(HTTPException(405)),
        limits.body_too_slow(settings.body_timeout_seconds),
        limits.body_too_large(limits.body_limit(path, settings)),
        limits.query_too_long(settings.max_query_bytes),
        limits.PATH_TOO_LONG,
        NOT_JSON,
        unknown_parameter("verbose", parameters),
        limits.too_many_requests(settings.rate_limit or 60, 1),
        INTERNAL,
        OVERLOADED,
        checks_timeout(settings.slow_timeout_seconds) if operation["operationId"] == "check" else TIMEOUT,
        LOST,
    ]
