"""The address of a page: recipe keys as text, and back.

    ?model=mistralai/Mistral-7B-v0.1&method=qlora&micro_batch_size=4

The keys are those of `Recipe`, flat. Objects are compact JSON, lists are names with commas between them. Empty inputs are
dropped, a key that stands twice and a key that does not exist are refused. The canonical address holds what the user said,
in the recipe's order, with names in memplan's own spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote_plus

from memplan.cards import resolve_model
from memplan.catalog.gpus import get_gpu
from memplan.documents import check_depth
from memplan.errors import MemplanError, UnknownNameError
from memplan.methods import canonical_method
from memplan.recipe import Recipe, parse_json
from memplan.recipe_text import Kind, choices_of, is_word_or_pattern, kind_of

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,3})?", re.ASCII)
_MOST_PAIRS = 200
# Signs that need no escape in a query and that a reader wants to see.
_SAFE = "/:,@!*-._~()$"
OLD_NAMES = {"gradient_checkpointing": "activation_checkpointing"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with one field, or with the recipe as a whole where `key` is empty."""

    key: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Query:
    """What an address says.

    Attributes:
        texts: by recipe key, as the user wrote them; empty ones are left out.
        keys: their values; keys with a mistake are left out.
        mistakes: what cannot be read.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()


def read_query(raw: bytes) -> Query:
    """What a query string says; never raises."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PAIRS)
    except ValueError:
        return Query(
            mistakes=(Mistake("", "this address cannot be read", "it is not UTF-8 text, or has too many parts"),)
        )
    return read_pairs(pairs)


def read_pairs(pairs: Iterable[tuple[str, str]]) -> Query:
    """What names with their texts say; never raises."""
    texts: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for name, text in pairs:
        key = OLD_NAMES.get(name, name)
        text = text.strip()
        if not text:
            continue
        if key not in Recipe.model_fields:
            error = UnknownNameError("recipe key", name[:120], Recipe.model_fields, show=0)
            mistakes.append(Mistake("", error.message, error.hint))
        elif key in texts:
            mistakes.append(Mistake(key, f"{name} is given twice", "give it once"))
        else:
            texts[key] = text
    keys = {}
    for key in Recipe.model_fields:
        if key in texts:
            try:
                keys[key] = read_value(key, texts[key])
            except MemplanError as error:
                mistakes.append(Mistake(key, error.message, error.hint))
            except ValueError as error:
                mistakes.append(Mistake(key, f"{key} must be {error}"))
    return Query(texts, keys, tuple(mistakes))


def read_value(key: str, text: str) -> Any:
    """The value of a recipe key.

    Raises:
        ValueError: not what the key's type allows; the message is a phrase saying what is.
        FileFormatError: broken JSON.
    """
    match kind_of(key):
        case Kind.INTEGER:
            return int(_matching(_INTEGER, text, "a whole number, in digits alone"))
        case Kind.NUMBER:
            return float(_matching(_NUMBER, text, "a number"))
        case Kind.FLAG:
            return _named(text, {"true": True, "false": False})
        case Kind.FLAG_OR_NAME:
            return _named(text, {"true": True, "false": False, **{name: name for name in choices_of(key)}})
        case Kind.LIST:
            return _items(key, text)
        case Kind.NAMES:
            return text if is_word_or_pattern(text) and not text.startswith("[") else _items(key, text)
        case Kind.OBJECT:
            return _object(key, text)
        case Kind.TEXT_OR_OBJECT:
            return _object(key, text) if text.startswith("{") else text
        case _:
            return text


def canonical(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in the recipe's order, with models, methods and GPUs by their own names."""
    found = {key: keys[key] for key in Recipe.model_fields if keys.get(key) is not None}
    with suppress(MemplanError):
        if isinstance(found.get("model"), str):
            found["model"] = resolve_model(found["model"], allow_paths=False).id
    with suppress(MemplanError):
        if "method" in found:
            found["method"] = canonical_method(found["method"])
    with suppress(MemplanError):
        if "gpu" in found:
            found["gpu"] = get_gpu(found["gpu"]).id
    return found


def query_of(keys: Mapping[str, Any]) -> str:
    """The canonical query string, without a question mark."""
    return "&".join(f"{key}={quote_plus(text_of(value), safe=_SAFE)}" for key, value in canonical(keys).items())


def text_of(value: Any) -> str:
    """A value as the query holds it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=list)
    if isinstance(value, list | tuple):
        if any("," in item or item != item.strip() or not item for item in value):
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        joined = ",".join(value)
        # One name that would be read as a word or as a regular expression.
        return (
            joined
            if value and not is_word_or_pattern(joined)
            else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        )
    return str(value)


def _matching(pattern: re.Pattern[str], text: str, allowed: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{allowed}; it is {text[:60]!r}")
    return text


def _named(text: str, values: Mapping[str, Any]) -> Any:
    if text not in values:
        *first, last = values
        raise ValueError(f"{', '.join(first)} or {last}; it is {text[:60]!r}")
    return values[text]


def _items(key: str, text: str) -> list[str]:
    if text.startswith("["):
        items = parse_json(text, key)
        if not all(isinstance(item, str) for item in items):
            raise ValueError("a list of names")
        return list(items)
    return [item.strip() for item in text.split(",") if item.strip()]


def _object(key: str, text: str) -> dict[str, Any]:
    value = parse_json(text, key)
    if not isinstance(value, dict):
        raise ValueError('a JSON object, such as {"r": 16}')
    try:
        text_of(value).encode()
    except UnicodeEncodeError:
        raise ValueError("text without halves of surrogate pairs") from None
    check_depth(value, key)
    return value
