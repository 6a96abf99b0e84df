"""What the text of an option means: numbers, lists, objects and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memplan.errors import FileFormatError, InvalidValueError
from memplan.recipe import load_mapping, parse_json
from memplan.recipe_text import Kind, is_word_or_pattern

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def read_value(key: str, kind: Kind, text: Any, names: Sequence[str] = ()) -> Any:
    """The value of recipe key `key`.

    Args:
        key: for messages.
        kind: from `memplan.recipe_text.kind_of`.
        text: what the parser gave: a bool, a text, or a list of texts for what may be repeated.
        names: what a FLAG_OR_NAME may be beside true and false.

    Raises:
        InvalidValueError: not what the kind allows.
        FileFormatError: broken JSON, or a file that cannot be read.
    """
    match kind:
        case Kind.INTEGER:
            if not _INTEGER.fullmatch(text):
                raise InvalidValueError(key, text, "a whole number")
            return int(text)
        case Kind.NUMBER:
            if not _NUMBER.fullmatch(text):
                raise InvalidValueError(key, text, "a number")
            return float(text)
        case Kind.FLAG_OR_NAME:
            if text not in ("true", "false", *names):
                raise InvalidValueError(key, text, ", ".join(("true", "false", *names[:-1])) + f" or {names[-1]}")
            return {"true": True, "false": False}.get(text, text)
        case Kind.LIST:
            return _items(key, text)
        case Kind.NAMES:
            return _names(key, text)
        case Kind.OBJECT:
            return _object(key, text)
        case Kind.TEXT_OR_OBJECT:
            return _object(key, text) if text.lstrip().startswith("{") else text
        case _:
            return text


def _names(key: str, texts: Sequence[str]) -> Any:
    if len(texts) == 1 and not texts[0].lstrip().startswith("[") and is_word_or_pattern(texts[0]):
        return texts[0]
    return _items(key, texts)


def _items(key: str, texts: Sequence[str]) -> list[str]:
    found: list[str] = []
    for text in texts:
        if text.lstrip().startswith("["):
            items = parse_json(text, f"--{key.replace('_', '-')}")
            if not all(isinstance(item, str) for item in items):
                raise InvalidValueError(key, text, "a list of texts")
            found += items
        else:
            found += [item.strip() for item in text.split(",") if item.strip()]
    if not found:
        raise InvalidValueError(key, ",".join(texts), "at least one name")
    return found


def _object(key: str, text: str) -> dict[str, Any]:
    option = f"--{key.replace('_', '-')}"
    if text.lstrip().startswith(("{", "[", '"')):
        value = parse_json(text, option)
        if not isinstance(value, dict):
            raise InvalidValueError(key, text, "a JSON object, or the path of a file that holds one")
        return value
    try:
        return load_mapping(Path(text))
    except FileFormatError as error:
        if Path(text).is_file():
            raise
        hint = error.hint or "give the path of a JSON file, or the JSON object itself"
        raise FileFormatError(f"{option}: {error.message}", hint=hint) from None
