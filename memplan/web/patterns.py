"""Regular expressions that a client sends: only those whose matching time is bounded by a small power of the name's length.

Python's `re` backtracks: `(a+)+$` takes minutes on a module name of forty letters, and nothing but the end of the process
stops it. Patterns of real configs need neither repeated groups nor many unbounded repeats, so those are refused.

Known limits:
    Refuses some patterns that are harmless, such as `(?:ab)*`. On one's own machine memplan takes every pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from memplan.errors import InvalidValueError

MAX_PATTERN_LENGTH = 512
# Each may try every place in a name: names have about 60 letters, so three cost up to 60**3 / 6 = 36 000 steps a name.
MAX_UNBOUNDED_REPEATS = 3
# All patterns are tried on all module names, of which a model has thousands.
MAX_PATTERNS = 512
MAX_REPEATING_PATTERNS = 16
# An escape, a character class, or one character.
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_REPEATS = ("*", "+", "{")
_HINT = "this could take forever; `memplan` on your own machine takes it"


def check_patterns(values: Mapping[str, Any]) -> None:
    """Refuse texts that would be costly patterns, and more of them than configs have.

    Args:
        values: recipe keys with their values; texts are looked at however deep they stand, keys of objects too.

    Raises:
        InvalidValueError: says which text and why.
    """
    texts = [(key, text) for key, value in values.items() for text in _texts(value)]
    repeating = 0
    for key, text in texts:
        reason, repeats = _judged(text)
        if reason:
            raise InvalidValueError(key, text, reason, hint=_HINT)
        repeating += repeats > 0
        if repeating > MAX_REPEATING_PATTERNS:
            raise InvalidValueError(key, text, f"at most {MAX_REPEATING_PATTERNS} patterns with * or +", hint=_HINT)
    if len(texts) > MAX_PATTERNS:
        key, text = texts[MAX_PATTERNS]
        raise InvalidValueError(key, text, f"at most {MAX_PATTERNS} names and patterns", hint=_HINT)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _texts(one)


def _judged(text: str) -> tuple[str, int]:
    """Why the service does not match `text`, empty where it does; and how many unbounded repeats it has."""
    if len(text) > MAX_PATTERN_LENGTH:
        return f"a text of at most {MAX_PATTERN_LENGTH} characters", 0
    if "(?" in text and re.search(r"\(\?(?!:|P<)", text):
        return "a pattern without lookaround, conditions and flags", 0
    unbounded = 0
    before = ""
    for token in _TOKEN.findall(text):
        if token.startswith(_REPEATS) and token != "{":
            if before == ")":
                return "a pattern without repeated groups", 0
            unbounded += token in ("*", "+") or token.endswith(",}") or _most(token) > 1
        elif re.fullmatch(r"\\[1-9]", token):
            return "a pattern without back references", 0
        before = token
    if unbounded > MAX_UNBOUNDED_REPEATS:
        return f"a pattern with at most {MAX_UNBOUNDED_REPEATS} repeats", 0
    return "", unbounded


def _most(token: str) -> int:
    return max((int(number) for number in re.findall(r"\d{1,9}", token)), default=0)
