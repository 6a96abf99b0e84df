"""What texts on the command line mean."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.cli.values import Kind, read_value
from memplan.errors import FileFormatError, InputError, InvalidValueError


@pytest.mark.parametrize(("text", "value"), [("4", 4), ("+4", 4), ("-1", -1), ("007", 7), ("9" * 30, int("9" * 30))])
def test_integers(text: str, value: int) -> None:
    assert read_value("gpus", Kind.INTEGER, text) == value


@pytest.mark.parametrize("text", ["", " 4", "1.5", "1e3", "4x", "0x10", "1_000", "４", "nan", "9" * 5000])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(InvalidValueError, match="a whole number"):
        read_value("gpus", Kind.INTEGER, text)


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), (".5", 0.5), ("1.", 1.0), ("-2e-3", -0.002)])
def test_numbers(text: str, value: float) -> None:
    assert read_value("lora_dropout", Kind.NUMBER, text) == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "1,5", "1e", "."])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidValueError, match="a number"):
        read_value("lora_dropout", Kind.NUMBER, text)


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["all-linear"], "all-linear"),
        (["q_proj"], ["q_proj"]),
        (["q_proj,v_proj"], ["q_proj", "v_proj"]),
        (["q_proj, v_proj", "o_proj"], ["q_proj", "v_proj", "o_proj"]),
        (["model.layers.0.mlp.up_proj"], ["model.layers.0.mlp.up_proj"]),
        ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"),
        ([".*{1,2}"], ".*{1,2}"),
        (['["q_proj", "v_proj"]'], ["q_proj", "v_proj"]),
    ],
)
def test_names(texts: list[str], value: object) -> None:
    assert read_value("target_modules", Kind.NAMES, texts) == value


def test_lists_keep_patterns() -> None:
    assert read_value("trainable", Kind.LIST, ["model.layers.*,!*norm*"]) == ["model.layers.*", "!*norm*"]


@pytest.mark.parametrize("texts", [[""], [","], ["[]"], ["[1]"]])
def test_lists_without_names(texts: list[str]) -> None:
    with pytest.raises(InvalidValueError):
        read_value("trainable", Kind.LIST, texts)


def test_flags_with_kinds() -> None:
    names = ("reentrant", "non-reentrant")
    assert read_value("activation_checkpointing", Kind.FLAG_OR_NAME, "true", names) is True
    assert read_value("activation_checkpointing", Kind.FLAG_OR_NAME, "false", names) is False
    assert read_value("activation_checkpointing", Kind.FLAG_OR_NAME, "reentrant", names) == "reentrant"
    with pytest.raises(InvalidValueError, match="true, false, reentrant or non-reentrant"):
        read_value("activation_checkpointing", Kind.FLAG_OR_NAME, "sometimes", names)


def test_objects_inline_and_by_path(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text('{"r": 8}')
    assert read_value("peft", Kind.OBJECT, '{"r": 8}') == {"r": 8}
    assert read_value("peft", Kind.OBJECT, str(file)) == {"r": 8}


@pytest.mark.parametrize("text", ["[1]", '"lora"'])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(InvalidValueError, match="a JSON object, or the path of a file that holds one"):
        read_value("peft", Kind.OBJECT, text)


@pytest.mark.parametrize("text", ['{"r": 8', '{"r": 1, "r": 2}', '{"r": NaN}', "nosuch.json"])
def test_broken_objects(text: str) -> None:
    with pytest.raises(FileFormatError, match="--peft"):
        read_value("peft", Kind.OBJECT, text)


@given(kind=st.sampled_from([Kind.INTEGER, Kind.NUMBER, Kind.OBJECT, Kind.FLAG_OR_NAME]), text=st.text(max_size=40))
def test_any_text_is_read_or_refused_as_input(kind: Kind, text: str) -> None:
    with suppress(InputError):
        read_value("peft", kind, text, ("a", "b"))


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=3), kind=st.sampled_from([Kind.LIST, Kind.NAMES]))
def test_any_list_is_read_or_refused_as_input(texts: list[str], kind: Kind) -> None:
    with suppress(InputError):
        assert read_value("target_modules", kind, texts)
