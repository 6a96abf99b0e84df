"""Configs that ask for activations in host memory, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memplan.errors import UnsupportedError
from memplan.interop import read, write
from memplan.recipe import Recipe

MODEL = "meta-llama/Llama-3.1-8B"
CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": True, "activation_offloading": "checkpoints"}


def reading(tmp_path: Path, text: str, name: str) -> Any:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, name)


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("activation_offloading: true\n", "saved-tensors"),
        ("activation_offloading: false\n", None),
        ("gradient_checkpointing_kwargs: {use_reentrant: false, offload: true}\n", "checkpoints"),
    ],
)
def test_trl(tmp_path: Path, text: str, variant: str | None) -> None:
    found = reading(tmp_path, f"model_name_or_path: {MODEL}\ndataset_name: x\nuse_peft: true\n{text}", "trl")
    assert found.recipe.activation_offloading == variant
    assert found.recipe.uncovered == ()


def test_both_at_once_are_reported(tmp_path: Path) -> None:
    text = "gradient_checkpointing_kwargs: {offload: true}\nactivation_offloading: true\n"
    found = reading(tmp_path, f"model_name_or_path: {MODEL}\ndataset_name: x\n{text}", "trl")
    assert found.recipe.activation_offloading == "checkpoints"
    assert any("beside offloaded checkpoints" in text for text in found.recipe.uncovered)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("axolotl", f"base_model: {MODEL}\ngradient_checkpointing: true\nactivation_offloading: true\n"),
        ("llamafactory", f"model_name_or_path: {MODEL}\nstage: sft\nfinetuning_type: lora\nuse_unsloth_gc: true\n"),
    ],
)
def test_what_is_not_walked_is_reported(tmp_path: Path, name: str, text: str) -> None:
    found = reading(tmp_path, text, name)
    assert found.recipe.activation_offloading is None
    assert any("offload" in entry for entry in found.recipe.uncovered)


@pytest.mark.parametrize(
    ("keys", "line"),
    [(CHECKPOINTED, "offload: true"), ({"activation_offloading": "saved-tensors"}, "activation_offloading: true")],
)
def test_written_for_trl_and_read_back(keys: dict[str, Any], line: str) -> None:
    recipe = Recipe(model=MODEL, method="lora", stack="trl", sequence_length=1024, **keys)
    assert line in write(recipe, "trl").text


def test_no_format_holds_what_its_framework_cannot_say() -> None:
    recipe = Recipe(model=MODEL, method="lora", sequence_length=1024, **CHECKPOINTED)
    with pytest.raises(UnsupportedError, match="activation_offloading"):
        write(recipe, "axolotl")
