"""Lines of keys, and the limits of what is parsed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.documents import MAX_DEPTH, MAX_FILE_BYTES, parse
from memplan.errors import FileFormatError

YAML = """# a comment
model:
  name: x   # nested
  sizes: [1, {deep: 2}]

"quoted key": 3
list:
  - a: 1
  - b: 2
"""
TOML = """# a comment
top = 1
[model]
name = "x"
flavor.size = 3
text = '''
name = "not a key"
'''
values = [
  1,
  2,
]
after = 2
[[check]]
name = "a"
[[check]]
"name" = "b"
"""
JSON = """{
  "model": {"name": "a \\" {", "sizes": [1, {"deep": 2}]},

  "quoted key": 3,
  "list": [
    {"a": 1},
    {"b": 2}
  ]
}"""


def test_lines_of_yaml() -> None:
    lines = parse(YAML, "yaml", "f").lines
    assert lines[("model",)] == 2
    assert lines[("model", "name")] == 3
    assert lines[("model", "sizes", 1, "deep")] == 4
    assert lines[("quoted key",)] == 6
    assert lines[("list", 1, "b")] == 9


def test_lines_of_json() -> None:
    lines = parse(JSON, "json", "f").lines
    assert lines[("model", "name")] == 2
    assert lines[("model", "sizes", 1, "deep")] == 2
    assert lines[("quoted key",)] == 4
    assert (lines[("list", 0, "a")], lines[("list", 1, "b")]) == (6, 7)


def test_lines_of_toml() -> None:
    document = parse(TOML, "toml", "f")
    lines = document.lines
    assert lines[("top",)] == 2
    assert lines[("model", "name")] == 4
    assert lines[("model", "flavor", "size")] == 5
    assert lines[("model", "values")] == 9
    assert lines[("model", "after")] == 13
    assert (lines[("check", 0, "name")], lines[("check", 1, "name")]) == (15, 17)
    assert document.line(("model", "flavor", "size", "x")) == 5
    assert document.line(("nothing",)) == 0


_KEYS = st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=1, max_size=8)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_KEYS, _TREES, max_size=4))
def test_every_key_of_any_json_has_the_line_it_stands_on(data: dict[str, object]) -> None:
    text = json.dumps(data, indent=1)
    document = parse(text, "json", "f")
    assert document.data == data
    rows = text.split("\n")

    def check(value: object, path: tuple[str | int, ...]) -> None:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            if isinstance(value, dict):
                assert rows[document.lines[(*path, key)] - 1].lstrip().startswith(json.dumps(key))
            check(child, (*path, key))

    check(data, ())


@pytest.mark.parametrize("syntax", ["json", "yaml"])
def test_depth_is_limited(syntax: str) -> None:
    parse('{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}", syntax, "f")  # type: ignore[arg-type]
    for depth in (MAX_DEPTH + 1, 20_000):
        with pytest.raises(FileFormatError, match="nested too deeply"):
            parse('{"a": ' + "[" * depth + "]" * depth + "}", syntax, "f")  # type: ignore[arg-type]


def test_size_is_limited() -> None:
    with pytest.raises(FileFormatError, match="larger than 256 KiB"):
        parse(" " * MAX_FILE_BYTES + "1", "yaml", "f")
