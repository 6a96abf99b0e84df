"""Every form of a recipe that can be copied is the same recipe."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import memplan
from memplan.cli.app import app
from memplan.recipe import Recipe
from memplan.web.pages.copying import copies
from memplan.web.pages.keys import read_query

RECIPES: tuple[dict[str, Any], ...] = (
    {
        "model": "openai-community/gpt2",
        "method": "lora",
        "peft": {"r": 4, "target_modules": ["c_attn"], "layers_pattern": None},
        "lora_dropout": 0.05,
        "padding": False,
        "expandable_segments": True,
        "activation_checkpointing": True,
        "gpu": "t4",
    },
    {
        "model": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
        "method": "lora",
        "lora_r": 4,
        "target_modules": r".*\.(q|v)_proj",
        "activation_checkpointing": False,
        "sequence_length": 128,
    },
    {"model": "openai-community/gpt2", "method": "lora", "target_modules": ["c_attn", "c_proj"]},
)


@pytest.mark.parametrize("keys", RECIPES)
def test_every_form_is_the_same_recipe(keys: dict[str, Any]) -> None:
    forms = {copy.name: copy.text for copy in copies(keys)}
    expected = Recipe(**keys)
    assert list(forms) == ["Link", "CLI", "Python", "JSON", "YAML"]
    assert Recipe(**read_query(forms["Link"].removeprefix("/?").encode()).keys) == expected
    assert Recipe(**json.loads(forms["JSON"])) == expected
    assert Recipe(**yaml.safe_load(forms["YAML"])) == expected


@pytest.mark.parametrize("keys", RECIPES)
def test_the_command_and_the_script_give_the_same_answer(
    keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forms = {copy.name: copy.text for copy in copies(keys)}
    device_bytes = memplan.estimate(**keys).peak.device_bytes
    exec(compile(forms["Python"], "copied", "exec"), {})
    assert int(capsys.readouterr().out) == device_bytes
    words = shlex.split(forms["CLI"].replace("\\\n", " "))
    assert words[:2] == ["memplan", "estimate"]
    from memplan.cli.options import spelled_out

    result = CliRunner().invoke(app, spelled_out([*words[1:], "--json"]))
    assert json.loads(result.stdout)["peak"]["device_bytes"] == device_bytes, result.output


def test_a_shell_cannot_be_tricked() -> None:
    text = copies({"model": "x; rm -rf ~ $(id) `id` 'q' \"d\"", "method": "lora"})[1].text
    assert shlex.split(text)[3] == "x; rm -rf ~ $(id) `id` 'q' \"d\""
