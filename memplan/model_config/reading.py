"""A config.json from disk or text: bounded, strict, with the place of a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from memplan.errors import FileFormatError

MAX_CONFIG_BYTES = 2**20  # sizes fill a few KiB; the rest is room for label names
MAX_DEPTH = 16


def read_config_file(path: Path) -> dict[str, Any]:
    """The object in the config.json that `path` names, or in the directory that it names.

    Raises:
        FileFormatError: no such file, a directory without config.json, a file over 1 MiB, or text that `parse_config`
            refuses.
    """
    try:
        file = path / "config.json" if path.is_dir() else path
        if not file.exists():
            if file != path:
                raise FileFormatError(f"{path} holds no config.json", hint=_hint_for_directory(path))
            raise FileFormatError(f"{path} does not exist", hint="give a config.json, or a directory that holds one")
        if not file.is_file():  # a pipe or a device would be read without end
            raise FileFormatError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise FileFormatError(f"{file} is over 1 MiB", hint="a config.json holds sizes, not weights")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{file} is not UTF-8 text (byte {error.start})") from None
    return parse_config(text, name=str(file))


def parse_config(text: str, *, name: str) -> dict[str, Any]:
    """The object that `text` holds as strict JSON.

    Args:
        text: JSON; no duplicate keys, no NaN or Infinity, at most 16 levels deep.
        name: what the text is called in messages.

    Raises:
        FileFormatError: not such JSON, or not an object; with line and column where JSON itself is broken.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise FileFormatError(f"{name} has the key {twice!r} twice in one object")
        return made

    def constant(token: str) -> NoReturn:
        raise FileFormatError(f"{name} holds {token}, which is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise FileFormatError(f"{name} is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise FileFormatError(f"{name} is nested deeper than {MAX_DEPTH} levels") from None
    except FileFormatError:
        raise
    except ValueError:  # an integer of more than 4300 digits
        raise FileFormatError(f"{name} holds a number that is too long") from None
    if _deeper_than(value, MAX_DEPTH):
        raise FileFormatError(f"{name} is nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        raise FileFormatError(f"{name} holds no JSON object", hint='a config.json begins with {"model_type": ...}')
    return value


def _hint_for_directory(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "it holds an adapter (adapter_config.json): give its base model, and the adapter's settings as peft"
    return "give a config.json, or a directory that holds one"


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            child
            for item in layer
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True
