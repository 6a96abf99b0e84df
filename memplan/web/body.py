"""A client's JSON, read strictly: UTF-8, no key twice, no number that is none, nothing deep.

Runs in a computing process, where a text that costs too much to read can be ended.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from memplan.errors import FileFormatError
from memplan.recipe import parse_json
from memplan.web.problems import Problem, ProblemError

# The largest integer that every JSON reader keeps exactly (RFC 8259, 6).
LARGEST_INTEGER = 2**53 - 1
NAME = "the body"


def read_json(data: bytes, max_depth: int) -> Any:
    """The value of a JSON text.

    Args:
        data: the text's bytes.
        max_depth: how many objects and lists may stand in each other.

    Raises:
        ProblemError: not UTF-8, not JSON, a key twice, a number out of range, or too deep.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse("invalid_encoding", f"{NAME} is not UTF-8 text (byte {error.start})")
    try:
        value = parse_json(text.removeprefix("\ufeff"), NAME)
    except FileFormatError as error:
        raise ProblemError(Problem(400, "invalid_json", error.message, error.hint)) from None
    _check(value, max_depth)
    return value


def _check(value: Any, max_depth: int) -> None:
    level = [value]
    depth = 0
    while level:
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            else:
                _check_scalar(item)
        level = deeper
        depth += 1
        if depth >= max_depth and any(isinstance(item, dict | list) for item in level):
            _refuse("invalid_json", f"{NAME} is nested too deeply", f"at most {max_depth} levels")


def _check_scalar(item: Any) -> None:
    if isinstance(item, float):
        if not math.isfinite(item):  # 1e999
            _refuse("invalid_json", f"{NAME} holds a number too large for a 64-bit float")
    elif isinstance(item, int):
        if abs(item) > LARGEST_INTEGER:
            _refuse("invalid_json", f"{NAME} holds an integer beyond {LARGEST_INTEGER}, which JSON readers do not keep")
    elif isinstance(item, str) and not item.isascii():
        try:
            item.encode()
        except UnicodeEncodeError:
            _refuse("invalid_json", f"{NAME} holds half of a surrogate pair, which is no character")


def _refuse(code: str, message: str, hint: str = "") -> NoReturn:
    raise ProblemError(Problem(400, code, message, hint))
