"""Changes to the text of a YAML or JSON file that leave everything else as it is: comments, order, quotes, spacing.

Only the characters of a changed value are replaced, and new keys are put after the last one of their mapping. The places come
from PyYAML's marks, also for JSON, which YAML contains.

Known limits:
    A value that is an alias, or that an alias repeats, is refused: changing it would change another key too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from memplan.documents import Syntax, parse
from memplan.errors import FileFormatError

Path_ = tuple[str, ...]


def edited(text: str, syntax: Syntax, changes: Mapping[Path_, Any], name: str = "file") -> str:
    """`text` with values set.

    Args:
        text: the whole file; empty for a new one.
        syntax: json or yaml.
        changes: value by path; a path that is not there is added, mappings around it too.
        name: of the file, for messages.

    Raises:
        FileFormatError: not valid, or a change that cannot be made without changing more.
    """
    if syntax == "toml":
        raise FileFormatError(f"{name}: TOML is read and not written")
    if changes and (not text.strip() or parse(text, syntax, name).data is None):
        fresh: dict[str, Any] = {}
        for path, value in changes.items():
            _put(fresh, path, value)
        return text + (json.dumps(fresh, indent=2) if syntax == "json" else _lines(fresh, 0)) + "\n"
    for path, value in changes.items():
        data = parse(text, syntax, name).data
        if not isinstance(data, dict):
            raise FileFormatError(f"{name} holds a {type(data).__name__}, not a mapping of keys")
        if _at(data, path) != (True, value):
            text = _set(text, syntax, path, value, name)
    return text


def _at(data: Any, path: Path_) -> tuple[bool, Any]:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False, None
        data = data[key]
    return True, data


def _put(data: dict[str, Any], path: Path_, value: Any) -> None:
    for key in path[:-1]:
        data = data.setdefault(key, {})
    data[path[-1]] = value


def _lines(data: Mapping[str, Any], indent: int) -> str:
    """A mapping as a block, one key a line."""
    found = []
    for key, value in data.items():
        start = f"{' ' * indent}{_scalar(key)}:"
        nested = isinstance(value, Mapping) and value
        found.append(f"{start}\n{_lines(value, indent + 2)}" if nested else f"{start} {_flow(value)}")
    return "\n".join(found)


def _nested(path: Path_, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _block(path: Path_, value: Any, indent: int) -> str:
    lines = [f"{' ' * (indent + 2 * depth)}{_scalar(key)}:" for depth, key in enumerate(path)]
    lines[-1] += f" {_flow(value)}"
    return "\n".join(lines)


def _set(text: str, syntax: Syntax, path: Path_, value: Any, name: str) -> str:
    import yaml

    # A tab is no YAML between JSON's tokens; a space has the same width.
    root = yaml.compose(text.replace("\t", " ") if syntax == "json" else text, yaml.SafeLoader)
    seen: dict[int, int] = {}
    _count(root, seen)
    mapping: Any = root
    for depth, key in enumerate(path):
        found = next((pair for pair in mapping.value if pair[0].value == key), None)
        if found is None:
            return _insert(text, syntax, mapping, path[depth:], value)
        child = found[1]
        if seen[id(child)] > 1:
            raise FileFormatError(
                f"{name}:{found[0].start_mark.line + 1}: {key} shares its value with another key by an alias",
                hint="write the value out, then export again",
            )
        if depth == len(path) - 1:
            return _replace(text, syntax, found[0], child, value)
        if not isinstance(child, yaml.MappingNode):
            return _replace(text, syntax, found[0], child, _nested(path[depth + 1 :], value))
        mapping = child
    raise AssertionError(path)


def _count(node: Any, seen: dict[int, int]) -> None:
    seen[id(node)] = seen.get(id(node), 0) + 1
    if seen[id(node)] == 1 and node.id != "scalar":
        for child in node.value:
            for entry in child if isinstance(child, tuple) else (child,):
                _count(entry, seen)


def _end(node: Any) -> int:
    """Where a node's own text ends; block collections end with their last entry."""
    if node.id != "scalar" and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _replace(text: str, syntax: Syntax, key: Any, node: Any, value: Any) -> str:
    start, end = node.start_mark.index, _end(node)
    old = text[start:end]
    if syntax == "json":
        return text[:start] + json.dumps(value) + text[end:]
    new = _flow(value, like=old)
    is_block = node.id != "scalar" and not node.flow_style
    if is_block or not old:  # on the lines below its key, or nothing
        start = text.index(":", key.end_mark.index) + 1
        end = max(end, start) if is_block else start
        new = f" {new}"
    elif node.id == "scalar" and node.style in ("|", ">"):
        new += "\n"
    return text[:start] + new + text[end:]


def _insert(text: str, syntax: Syntax, mapping: Any, path: Path_, value: Any) -> str:
    if syntax == "json" or mapping.flow_style:
        entry = f"{json.dumps(path[0]) if syntax == 'json' else _scalar(path[0])}: "
        inner = _nested(path[1:], value)
        entry += json.dumps(inner) if syntax == "json" else _flow(inner)
        if not mapping.value:
            at = mapping.start_mark.index + 1
            return text[:at] + entry + text[at:]
        first, last = mapping.value[0][0], mapping.value[-1][1]
        own_line = first.start_mark.line > mapping.start_mark.line
        gap = " "
        if own_line:  # the file's own indentation, tabs included
            begin = text.rfind("\n", 0, first.start_mark.index) + 1
            gap = "\n" + text[begin : first.start_mark.index]
        return f"{text[: _end(last)]},{gap}{entry}{text[_end(last) :]}"
    column = mapping.value[0][0].start_mark.column
    at = text.find("\n", _end(mapping))
    block = _block(path, value, column)
    if at < 0:
        return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{block}\n"
    return f"{text[: at + 1]}{block}\n{text[at + 1 :]}"


def _flow(value: Any, like: str = "") -> str:
    """A value on one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(entry) for entry in value) + "]"
    return _scalar(value, like)


_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+-]*", re.ASCII)


def _scalar(value: Any, like: str = "") -> str:
    """A scalar as YAML 1.1 reads it back, quoted and spelled as `like` is."""
    import yaml

    if value is None:
        return "null"
    if isinstance(value, bool):
        word = "true" if value else "false"
        return word.capitalize() if like in ("True", "False") else word
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e", 1)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    is_plain = bool(_PLAIN.fullmatch(text)) and yaml.safe_load(text) == text
    if like[:1] == "'" and "'" not in text and "\n" not in text:
        return f"'{text}'"
    return text if is_plain and like[:1] != '"' else f'"{"".join(map(_escaped, text))}"'


def _escaped(letter: str) -> str:
    """A character as a double-quoted scalar of YAML holds it."""
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
