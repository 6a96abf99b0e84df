from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods import adapt
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import LLAMA, QWEN2, VIT

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ADALORA", {"total_step": 10}),
    ("ADALORA", {"total_step": 10, "target_modules": "all-linear", "init_r": 5}),
    ("DEFT", TARGETS),
    ("DEFT", {**TARGETS, "para": True, "r": 30}),
    ("DELORA", {**TARGETS, "rank_pattern": {"k_proj": 3}}),
    ("GLORA", {**TARGETS, "r": 4}),
    ("GLORA", {**TARGETS, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    ("GLORA", {**TARGETS, "config_A_B": "constant", "config_C": "none", "config_D_E": "constant"}),
    ("GLORA", {**TARGETS, "config_A_B": "none", "config_C": "none", "config_D_E": "none"}),
    ("GRALORA", {**TARGETS, "r": 8, "hybrid_r": 3}),
    ("HIRA", {**TARGETS, "r": 8, "rank_pattern": {"k_proj": 5}}),
    ("HIRA", {"target_modules": ["embed_tokens", "q_proj"], "r": 8}),
    ("LILY", {**TARGETS, "r": 4, "num_B": 3, "stride_A": 2}),
    ("LILY", {"target_modules": r".*(k|v)_proj", "r": 4}),
    ("PEANUT", {**TARGETS, "r": 4}),
    ("PEANUT", {**TARGETS, "r": 4, "depth": 2}),
    ("POLY", {**TARGETS, "n_tasks": 3, "n_splits": 2}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@pytest.mark.parametrize("form", ["lora", "vector", "none"])
def test_glora_on_layers_with_a_bias_equals_peft(form: str) -> None:
    options = {"target_modules": ["q_proj"], "r": 3, "config_C": form, "config_D_E": "vector"}
    assert_equals_peft(QWEN2, "causal-lm", "GLORA", options)


def test_hira_and_adalora_on_a_convolution_equal_peft() -> None:
    assert_equals_peft(VIT, "image-classification", "HIRA", {"target_modules": ["projection"], "r": 3})
    options = {"target_modules": ["projection"], "init_r": 3, "total_step": 10}
    assert_equals_peft(VIT, "image-classification", "ADALORA", options)


def test_lily_with_all_linear_is_not_covered() -> None:
    with pytest.raises(UnsupportedError, match="Lily with target_modules all-linear"):
        adapt(architecture(LLAMA, "causal-lm"), "lily", {"target_modules": "all-linear"})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ADALORA", {}, "AdaLoRA needs the number of training steps"),
    ("ADALORA", {"total_step": 10, "tinit": 8, "tfinal": 2}, "more than tinit . tfinal"),
    ("ADALORA", {"total_step": 10, "init_r": 60, "target_modules": ["q_proj"]}, "peft.init_r = 60"),
    ("GLORA", {**TARGETS, "config_C": "constant"}, "peft.config_C"),
    ("GRALORA", {**TARGETS, "r": 9, "gralora_k": 2}, "a divisor of the rank 9"),
    ("GRALORA", {"target_modules": ["q_proj"], "r": 10, "gralora_k": 5}, "a divisor of 48 and 48"),
    ("LILY", {**TARGETS, "num_B": 1}, "at least 2"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
