"""What went wrong, as a client is told: the one error envelope.

    {"error": {"code": "unknown_model", "message": "...", "hint": "...", "field": "model", "request_id": "..."}}

`code` is stable; `hint` and `field` are left out where there is nothing to say. What the client sent is quoted only as far
as memplan's own messages quote it: at most 120 characters, never as a number that JSON cannot hold.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from memplan.errors import FileFormatError, InvalidValueError, MemplanError, UnavailableError, UnknownNameError
from memplan.recipe import Recipe
from memplan.web.hints import over_rest

# Kinds of names (`UnknownNameError.kind`) that are called otherwise in a recipe.
_FIELD_OF_KIND = {"GPU": "gpu", "optimizer": "optim", "model_type": "model"}
_FIRST_WORD = re.compile(r"[a-z0-9_.]+")
_LONGEST_TEXT = 2_000
_LONGEST_FIELD = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client sees it.

    Attributes:
        status: of HTTP.
        code: stable, snake_case.
        message: what is wrong.
        hint: what is allowed, or what to do; may be empty.
        field: the recipe key (or `peft.<key>`, or the name of a parameter) at fault; may be empty.
        headers: to send besides.
    """

    status: int
    code: str
    message: str
    hint: str = ""
    field: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def entry(self, request_id: str) -> dict[str, Any]:
        """The envelope as a plain value."""
        said = {"code": self.code, "message": _clean(self.message)}
        if self.hint:
            said["hint"] = _clean(self.hint)
        if self.field:
            said["field"] = _clean(self.field[:_LONGEST_FIELD])
        return {"error": said | {"request_id": request_id}}

    def body(self, request_id: str) -> bytes:
        """The envelope as JSON."""
        return json.dumps(self.entry(request_id), ensure_ascii=False, allow_nan=False).encode()


class ProblemError(Exception):
    """Raised where the service itself, and not the engine, refuses a request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def _clean(text: str) -> str:
    """`text` that every JSON and UTF-8 decoder takes."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def problem_of(error: MemplanError) -> Problem:
    """A deliberate error of memplan as the client sees it."""
    if isinstance(error, UnavailableError):
        status = 503
    elif isinstance(error, FileFormatError):
        status = 400
    else:
        status = 422
    return Problem(status, error.code, error.message, over_rest(error.hint), field_of(error))


def field_of(error: MemplanError) -> str:
    """The recipe key that an error is about; empty where it is about none alone."""
    if isinstance(error, InvalidValueError):
        return error.key
    if isinstance(error, UnknownNameError):
        if error.kind == "recipe key":
            return error.name
        name = _FIELD_OF_KIND.get(error.kind, error.kind)
        return name if name in Recipe.model_fields else "peft" if error.kind.startswith("key of ") else ""
    # The other messages that are about one key begin with it.
    first = _FIRST_WORD.match(error.message)
    return first[0] if first is not None and first[0].partition(".")[0] in Recipe.model_fields else ""
