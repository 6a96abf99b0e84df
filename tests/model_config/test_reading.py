from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from memplan.errors import FileFormatError
from memplan.model_config.reading import MAX_CONFIG_BYTES, parse_config, read_config_file


def refusal(text: str) -> str:
    with pytest.raises(FileFormatError) as caught:
        parse_config(text, name="config.json")
    return str(caught.value)


def test_reads_a_file_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('\ufeff{"model_type": "llama", "hidden_size": 64}', encoding="utf-8")
    expected = {"model_type": "llama", "hidden_size": 64}
    assert read_config_file(tmp_path) == expected
    assert read_config_file(tmp_path / "config.json") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "config.json is not JSON: Expecting ':' delimiter at line 2, column 6"),
        ('{"a": 1', "config.json is not JSON: Expecting ',' delimiter at line 1, column 8"),
        ("", "config.json is not JSON: Expecting value at line 1, column 1"),
        ('{"a": 1} x', "config.json is not JSON: Extra data at line 1, column 10"),
        ('{"a": NaN}', "config.json holds NaN, which is not JSON"),
        ('{"a": -Infinity}', "config.json holds -Infinity, which is not JSON"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "config.json has the key 'b' twice in one object"),
        ('{"a": ' + "9" * 5000 + "}", "config.json holds a number that is too long"),
        ('{"a": ' * 17 + "1" + "}" * 17, "config.json is nested deeper than 16 levels"),
        ("[" * 100_000, "config.json is nested deeper than 16 levels"),
        ("[1]", 'config.json holds no JSON object\na config.json begins with {"model_type": ...}'),
    ],
)
def test_refused_text(text: str, message: str) -> None:
    assert refusal(text) == message


def test_sixteen_levels_are_read() -> None:
    text = '{"a": ' * 16 + "1" + "}" * 16
    assert parse_config(text, name="config.json") == json.loads(text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_config_file(tmp_path / "no.json")
    assert str(caught.value) == (
        f"{tmp_path}/no.json does not exist\ngive a config.json, or a directory that holds one"
    )


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_config_file(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no config.json\ngive a config.json, or a directory that holds one"


def test_directory_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileFormatError) as caught:
        read_config_file(tmp_path)
    assert caught.value.hint == (
        "it holds an adapter (adapter_config.json): give its base model, and the adapter's settings as peft"
    )


def test_file_over_one_mib(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"}' + " " * MAX_CONFIG_BYTES)
    with pytest.raises(FileFormatError) as caught:
        read_config_file(file)
    assert str(caught.value) == f"{file} is over 1 MiB\na config.json holds sizes, not weights"


def test_pipe_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    with pytest.raises(FileFormatError) as caught:
        read_config_file(pipe)
    assert str(caught.value) == f"{pipe} is not a regular file"


def test_binary_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FileFormatError) as caught:
        read_config_file(file)
    assert str(caught.value) == f"{file} is not UTF-8 text (byte 7)"


def test_unreadable_name() -> None:
    with pytest.raises(FileFormatError, match="cannot be read: File name too long"):
        read_config_file(Path("x" * 5000))
