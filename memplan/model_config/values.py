"""One value of a config: may it stand under its key?

A config.json is somebody else's file. Only the keys in `memplan/catalog/config_keys.toml` are looked at, and each value
must be of the key's kind: an integer between bounds, a flag, a finite number, a short word, a short list. So nothing
in a file can cost more than it says, and a slip (7.5 layers, a width of 10**12) is refused by the key's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from memplan.errors import InvalidValueError
from memplan.model_config.schema import key_kinds

_WORD = re.compile(r"[A-Za-z0-9_.|\- ]{1,64}", re.ASCII)
_ROPE_KEY = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_MAX_LIST = 4096  # a longrope factor list has head_dim / 2 entries; layer lists have one entry a layer
_MAX_NUMBER = 1e12
_LAYER_TYPES = ("full_attention", "sliding_attention")
# transformers/configuration_utils.py, _LEGACY_LAYER_TYPE_REMAP (5.23.0); its other names belong to no known class.
_LEGACY_LAYER_TYPES = {"attention": "full_attention"}


def check_value(key: str, value: Any, *, path: str = "") -> Any:
    """`value` as it may stand under `key`.

    Args:
        key: an architecture key listed in `config_keys.toml`.
        value: what the config has there.
        path: what stands before the key in messages, such as `text_config.`.

    Raises:
        InvalidValueError: not of the key's kind, or outside its bounds; names `path + key`.
    """
    kinds = key_kinds()
    if value is None and key in kinds.or_null:
        return None
    kind = kinds.kind_of[key]
    shown = path + key
    if kind in kinds.bounds:
        low, high = kinds.bounds[kind]
        return _integer(shown, value, low, high, or_null=key in kinds.or_null)
    if kind == "flag":
        if not isinstance(value, bool):
            raise InvalidValueError(shown, value, "true or false")
        return value
    if kind == "number":
        return _number(shown, value)
    if kind == "word":
        return _word(shown, value)
    if kind == "word_or_words":
        return value if not isinstance(value, list) else [_word(shown, item) for item in _list(shown, value)]
    if kind == "layer_types":
        return [_layer_type(shown, item) for item in _list(shown, value)]
    if kind == "integers":
        return [_integer(shown, item, 0, 65536) for item in _list(shown, value)]
    if kind == "integer_or_integers":
        if isinstance(value, list):
            return [_integer(shown, item, -1024, 1024) for item in _list(shown, value)]
        return _integer(shown, value, -1024, 1024)
    if kind == "size_or_sizes":
        return _size(shown, value)
    assert kind == "rope", kind
    return check_rope(shown, value)


def check_rope(key: str, value: Any, *, nested: bool = False) -> dict[str, Any]:
    """A copy of rotary parameters: flags, words, finite numbers and lists of them, at most one level of nesting.

    Raises:
        InvalidValueError: anything else; names `key`.
    """
    if not isinstance(value, Mapping) or len(value) > 64:
        raise InvalidValueError(key, value, "an object of rotary parameters, or null")
    checked: dict[str, Any] = {}
    for name, item in value.items():
        if not isinstance(name, str) or not _ROPE_KEY.fullmatch(name):
            raise InvalidValueError(key, name, "names of rotary parameters")
        shown = f"{key}.{name}"
        if name in _LAYER_TYPES and item is not None and (nested or not isinstance(item, Mapping)):
            raise InvalidValueError(shown, item, "an object of rotary parameters, or null")
        if item is None or isinstance(item, bool):
            checked[name] = item
        elif isinstance(item, str):
            checked[name] = _word(shown, item)
        elif isinstance(item, list):
            checked[name] = [_number(shown, entry) for entry in _list(shown, item)]
        elif isinstance(item, Mapping) and not nested:
            checked[name] = check_rope(shown, item, nested=True)
        else:
            checked[name] = _number(shown, item)
    return checked


def check_json_data(key: str, value: Any, *, depth: int = 6) -> Any:
    """A copy of `value` if it is plain JSON data of modest size; used for what is carried along as data only.

    Raises:
        InvalidValueError: an object of another kind, a number that is not finite, or nesting deeper than `depth`.
    """
    if (
        depth
        and isinstance(value, Mapping)
        and len(value) <= _MAX_LIST
        and all(isinstance(name, str) for name in value)
    ):
        return {name: check_json_data(f"{key}.{name}", item, depth=depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list) and len(value) <= _MAX_LIST:
        return [check_json_data(key, item, depth=depth - 1) for item in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, str) and len(value) <= _MAX_LIST):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InvalidValueError(key, value, f"JSON data nested at most {depth} levels deep, with finite numbers")


def _integer(shown: str, value: Any, low: int, high: int, *, or_null: bool = False) -> int:
    # bool is an int in Python, but true is no number of layers.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValueError(shown, value, f"an integer from {low} to {high}" + (", or null" if or_null else ""))
    return value


def _number(shown: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_NUMBER:
        raise InvalidValueError(shown, value, f"a number from 0 to {_MAX_NUMBER:.0e}")
    return value


def _word(shown: str, value: Any) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise InvalidValueError(shown, value, "a name of at most 64 letters, digits and . _ - |")
    return value


def _layer_type(shown: str, value: Any) -> str:
    name = _LEGACY_LAYER_TYPES.get(value, value) if isinstance(value, str) else None
    if name not in _LAYER_TYPES:
        raise InvalidValueError(shown, value, "a list of " + " and ".join(_LAYER_TYPES))
    return name


def _list(shown: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        raise InvalidValueError(shown, value, f"a list of at most {_MAX_LIST} entries")
    return value


def _size(shown: str, value: Any) -> int | list[int]:
    if isinstance(value, list) and len(value) == 2:
        return [_integer(shown, item, 1, 65536) for item in value]
    if isinstance(value, list):
        raise InvalidValueError(shown, value, "an integer from 1 to 65536, or two of them")
    return _integer(shown, value, 1, 65536)
