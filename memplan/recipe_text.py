"""How the text of a recipe key is to be read, from its type in `Recipe`: for the command line and for addresses of the page."""

from __future__ import annotations

import types
from enum import Enum, StrEnum, auto
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from memplan.recipe import Recipe

# A text with one of these is a regular expression; names of modules hold letters, digits, `_`, `-` and `.` alone.
_REGEX_SIGNS = frozenset("\\^$*+?{}[]|()")


class Kind(Enum):
    """How the text of a key is read."""

    TEXT = auto()
    INTEGER = auto()
    NUMBER = auto()
    FLAG = auto()
    FLAG_OR_NAME = auto()  # true, false, or a name
    LIST = auto()  # always a list
    NAMES = auto()  # a list of names, or one regular expression or word
    OBJECT = auto()  # a JSON object; on the command line also a path of one
    TEXT_OR_OBJECT = auto()  # text, unless it begins with a brace


@cache
def kind_of(key: str) -> Kind:
    """How a key's text is read."""
    parts = {get_origin(part) or part for part in _members(Recipe.model_fields[key].annotation)}
    if bool in parts:
        return Kind.FLAG_OR_NAME if choices_of(key) else Kind.FLAG
    if tuple in parts:
        return Kind.NAMES if str in parts else Kind.LIST
    if dict in parts:
        return Kind.TEXT_OR_OBJECT if str in parts else Kind.OBJECT
    if int in parts:
        return Kind.INTEGER
    return Kind.NUMBER if float in parts else Kind.TEXT


@cache
def choices_of(key: str) -> tuple[str, ...]:
    """The closed set that a key's text must come from; empty where there is none."""
    found: list[str] = []
    for part in _members(Recipe.model_fields[key].annotation):
        if isinstance(part, type) and issubclass(part, StrEnum):
            found += [str(member) for member in part]
        elif get_origin(part) is Literal:
            found += [str(value) for value in get_args(part)]
    return tuple(found)


def is_word_or_pattern(text: str) -> bool:
    """Whether the text of NAMES is one word for many modules or one regular expression, and no name of a module."""
    return text == "all-linear" or bool(_REGEX_SIGNS & set(text))


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation is made of: of `Annotated[int, ...] | None` it is [int]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (types.UnionType, Union):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [] if annotation is types.NoneType else [annotation]
