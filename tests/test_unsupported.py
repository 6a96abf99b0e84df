"""Trained parameters that no rule gives a gradient: said, not guessed, and never an internal error."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.agreement.cases import small_config
from memplan.recipe import Recipe
from memplan.unsupported import IDLE_WHERE_UNTIED

ROWS: dict[str, Any] = {"micro_batch_size": 13, "sequence_length": 129}


def unsupported(model_type: str, **keys: Any) -> tuple[str, ...]:
    config = small_config(model_type) | keys.pop("config", {})
    return memplan.estimate(Recipe(model=config, **ROWS, **keys)).unsupported


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("model_type", ["qwen2", "phi", "bert"])
def test_trained_biases_of_quantized_layers(model_type: str, bias: str) -> None:
    keys: dict[str, Any] = {"method": "lora", "peft": {"bias": bias, "target_modules": "all-linear"}}
    (text,) = unsupported(model_type, load_in_4bit=True, **keys)
    assert text.startswith("trained biases of quantized layers (")
    assert unsupported(model_type, **keys) == ()
    assert unsupported(model_type, load_in_4bit=True, method="lora", peft={"target_modules": "all-linear"}) == ()


def test_quantized_layers_without_biases_are_walked() -> None:
    assert unsupported("llama", load_in_4bit=True, method="lora", peft={"bias": "all"}) == ()


@pytest.mark.parametrize("model_type", IDLE_WHERE_UNTIED)
def test_what_is_untied_and_idle(model_type: str) -> None:
    untied = {"tie_word_embeddings": False}
    (text,) = unsupported(model_type, config=untied)
    assert IDLE_WHERE_UNTIED[model_type] in text
    assert unsupported(model_type) == ()
    assert unsupported(model_type, config=untied, method="lora", peft={"target_modules": "all-linear"}) == ()


def test_boft_on_weights_in_8_bits() -> None:
    keys: dict[str, Any] = {"method": "boft", "peft": {"target_modules": ["q_proj"], "boft_block_size": 4}}
    assert unsupported("llama", **keys) == ()
    assert any("BOFT on" in text and "8 bits" in text for text in unsupported("llama", load_in_8bit=True, **keys))


def test_glora_takes_no_linear_of_another_class() -> None:
    run: dict[str, Any] = {"method": "glora", "target_modules": ["query_key_value"]}
    (text,) = unsupported("falcon", **run)
    assert "FalconLinear" in text
    assert unsupported("gpt_neox", **run) == ()
