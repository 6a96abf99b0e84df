"""JSON, YAML and TOML texts as plain values, with the line of every key.

Nothing in a file is executed or imported. Duplicate keys, NaN, deep nesting, large files and aliases that multiply a value
are refused with their place.

Known limits:
    The lines of TOML keys are found by reading the text once more: a key inside of an inline table has its table's line,
    and lines are no longer counted after a value of more than 200 lines.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from memplan.errors import FileFormatError

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 32
# Of a YAML document: anchors are used once or twice in real configs, and a value that they repeat stays small.
MAX_ALIASES = 64
MAX_NODES = 50_000

Syntax = Literal["json", "yaml", "toml"]
Path_ = tuple[str | int, ...]
_SYNTAX_OF_SUFFIX: dict[str, Syntax] = {".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True, eq=False)
class Document:
    """A parsed file.

    Attributes:
        name: of the file, for messages.
        syntax: json, yaml or toml.
        data: plain values.
        lines: 1-based line of each key, by its path from the root.
        first_alias_line: where a YAML file first uses an alias; 0 where it does not.
    """

    name: str
    syntax: Syntax
    data: Any
    lines: Mapping[Path_, int] = field(default_factory=dict)
    first_alias_line: int = 0

    def line(self, path: Path_) -> int:
        """The line of `path`, or of the nearest key around it; 0 where nothing is known."""
        return line_of(self.lines, path)


def line_of(lines: Mapping[Path_, int], path: Path_) -> int:
    """The line of `path`, or of the nearest key around it; 0 where nothing is known."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 0)


def syntax_of(name: str) -> Syntax:
    """The syntax that the ending of a file name stands for.

    Raises:
        FileFormatError: another ending.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in _SYNTAX_OF_SUFFIX:
        raise FileFormatError(f"{name}: unknown ending {suffix!r}", hint="allowed: .json, .toml, .yaml, .yml")
    return _SYNTAX_OF_SUFFIX[suffix]


def read_text(path: Path) -> str:
    """The text of a file of at most `MAX_FILE_BYTES`.

    Raises:
        FileFormatError: missing, too large, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise FileFormatError(f"no such file: {path}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FileFormatError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB, which no recipe needs")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text (byte {error.start})") from None


def read_document(path: Path) -> Document:
    """The document in a file.

    Raises:
        FileFormatError: missing, too large, an unknown ending, or broken syntax.
    """
    text = read_text(path)
    return parse(text, syntax_of(str(path)), str(path))


def parse(text: str, syntax: Syntax, name: str) -> Document:
    """Parse a text.

    Args:
        text: the whole document.
        syntax: how it is written.
        name: for messages.

    Raises:
        FileFormatError: broken syntax with its line, a duplicate key, a text that is no Unicode, or a limit of this module.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
        raise FileFormatError(f"{name} is larger than {MAX_FILE_BYTES // 1024} KiB, which no recipe needs")
    if syntax == "json":
        document = Document(name, syntax, parse_json(text, name), _json_lines(text))
    elif syntax == "toml":
        document = Document(name, syntax, _parse_toml(text, name), _toml_lines(text))
    else:
        document = _parse_yaml(text, name)
    check_depth(document.data, name)
    if _ESCAPE.search(text):
        _check_characters(document.data, name)
    return document


_ESCAPE = re.compile(r"\\[uU]")


def _check_characters(data: Any, name: str) -> None:
    level = [data]
    while level:
        for value in level:
            if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise FileFormatError(f"{name} holds half of a surrogate pair, which is no character: {value[:80]!r}")
        level = [child for value in level for child in _within(value)]


def _within(value: Any) -> Iterable[Any]:
    """What a mapping or a list holds itself, keys too."""
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, list) else ()


def check_depth(data: Any, name: str) -> None:
    """Refuse objects and lists that stand in each other more than `MAX_DEPTH` deep.

    Raises:
        FileFormatError: they do.
    """
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _within(value) if isinstance(child, dict | list)]
        if not level:
            return
    raise FileFormatError(f"{name} is nested too deeply", hint=f"at most {MAX_DEPTH} levels")


# -- JSON -------------------------------------------------------------------------------------------------


def parse_json(text: str, name: str) -> Any:
    """Parse JSON strictly: duplicate keys, NaN and Infinity are refused with their place.

    Raises:
        FileFormatError: names line and column, or the duplicate key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FileFormatError(f"{name}: the key {key!r} stands twice in one object")
            found[key] = value
        return found

    def constant(word: str) -> NoReturn:
        raise FileFormatError(f"{name}: {word} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"{name} is not valid JSON: line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise FileFormatError(f"{name} is nested too deeply") from None
    except FileFormatError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise FileFormatError(f"{name} cannot be read as JSON: {error}") from None


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:\n]')


def _json_lines(text: str) -> dict[Path_, int]:
    """Lines of the keys of a text that is known to be valid."""
    lines: dict[Path_, int] = {}
    path: list[str | int] = []  # one entry for each open object or list: the key or index that is being read
    line, last = 1, ""
    for match in _JSON_TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
            continue
        if token == "{":
            path.append("")
        elif token == "[":
            path.append(0)
        elif token in "}]":
            path.pop()
        elif token == ":":
            path[-1] = json.loads(last)
            lines[tuple(path)] = line
        elif token == "," and isinstance(path[-1], int):
            path[-1] += 1
        last = token
    return lines


# -- TOML -------------------------------------------------------------------------------------------------


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{name} is not valid TOML: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise FileFormatError(f"{name} cannot be read as TOML: {error}") from None


_LONGEST_TOML_VALUE = 200
_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_TOML_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _toml_lines(text: str) -> dict[Path_, int]:
    """Lines of the keys of a text that is known to be valid."""
    lines: dict[Path_, int] = {}
    table: Path_ = ()
    counts: dict[Path_, int] = {}
    pending: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if pending:  # within a value of several lines
            pending.append(line)
            if len(pending) > _LONGEST_TOML_VALUE:
                return lines
            if _is_whole_toml("\n".join(pending)):
                pending = []
            continue
        header, key = _TOML_HEADER.match(line), _TOML_KEY.match(line)
        if header:
            table = _toml_path(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines[table] = number
        elif key:
            lines[(*table, *_toml_path(key[1]))] = number
            if not _is_whole_toml(line):
                pending = [line]
    return lines


def _toml_path(text: str) -> Path_:
    parts: list[str] = re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", text)
    return tuple(part.strip("\"'") for part in parts)


def _is_whole_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


# -- YAML -------------------------------------------------------------------------------------------------


def _parse_yaml(text: str, name: str) -> Document:
    import yaml  # 30 ms that only a YAML file should cost

    first_alias = 0
    aliases = 0

    class Loader(yaml.SafeLoader):
        """Refuses aliases beyond the limit."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            nonlocal aliases, first_alias
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
                aliases += 1
                first_alias = first_alias or line
                if aliases > MAX_ALIASES:
                    raise FileFormatError(f"{name}: line {line}: more than {MAX_ALIASES} aliases")
            return super().compose_node(parent, index)

    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(name, "yaml", None)
            if aliases:
                _check_size(node, name, {}, set())
            lines: dict[Path_, int] = {}
            _yaml_lines(node, name, (), lines)
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise FileFormatError(f"{name} is not valid YAML: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{name} is nested too deeply") from None
    except FileFormatError:
        raise
    except ValueError as error:  # a date that does not exist, an integer of thousands of digits
        raise FileFormatError(f"{name} cannot be read as YAML: {error}") from None
    return Document(name, "yaml", data, lines, first_alias)


def _children(node: Any) -> list[Any]:
    if node.id == "mapping":
        return [child for pair in node.value for child in pair]
    return list(node.value) if node.id == "sequence" else []


def _check_size(node: Any, name: str, sizes: dict[int, int], open_: set[int]) -> int:
    """Nodes below `node`, each alias counted as what it stands for."""
    key = id(node)
    if key in open_:
        raise FileFormatError(f"{name}: line {node.start_mark.line + 1}: an alias that contains itself")
    if key not in sizes:
        open_.add(key)
        sizes[key] = 1 + sum(_check_size(child, name, sizes, open_) for child in _children(node))
        open_.remove(key)
        if sizes[key] > MAX_NODES:
            raise FileFormatError(f"{name}: line {node.start_mark.line + 1}: aliases repeat a value too often")
    return sizes[key]


def _yaml_lines(node: Any, name: str, path: Path_, lines: dict[Path_, int]) -> None:
    """Lines of the keys; refuses a key that stands twice in one mapping, of which PyYAML takes the last."""
    if node.id == "mapping":
        seen = set()
        for key, value in node.value:
            if key.id != "scalar":
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise FileFormatError(f"{name}: the key {key.value!r} stands twice in one mapping (line {line})")
            seen.add(key.value)
            lines[(*path, key.value)] = line
            _yaml_lines(value, name, (*path, key.value), lines)
    elif node.id == "sequence":
        for index, child in enumerate(node.value):
            _yaml_lines(child, name, (*path, index), lines)
