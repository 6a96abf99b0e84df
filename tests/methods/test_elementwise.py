from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import InvalidValueError
from memplan.methods import adapt
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import GPT2, LLAMA

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("BEFT", {}),
    ("C3A", {**TARGETS, "block_size": 8, "block_size_pattern": {"down_proj": 16}}),
    ("FOURIERFT", {**TARGETS, "n_frequency_pattern": {"k_proj": 7}}),
    ("IA3", {}),
    ("IA3", {"target_modules": "all-linear", "feedforward_modules": ["mlp.down_proj"]}),
    ("IA3", {**TARGETS, "feedforward_modules": r".*\.down_proj"}),
    ("MISS", {**TARGETS, "r": 12}),
    ("MISS", {**TARGETS, "r": 8, "init_weights": "bat"}),
    ("MISS", {**TARGETS, "r": 8, "mini_r": 2, "init_weights": "mini"}),
    ("OSF", TARGETS),
    ("OSF", {**TARGETS, "effective_rank": 0.25, "rank_pattern": {"down_proj": 7}}),
    ("OSF", {"target_modules": ["up_proj"], "effective_rank": 5}),
    ("SHIRA", {**TARGETS, "r": 3}),
    ("SUPERTUNING", TARGETS),
    ("SUPERTUNING", {**TARGETS, "r": 3, "sparsity": 0.9}),
    ("WAVEFT", {**TARGETS, "n_frequency": 100, "n_frequency_pattern": {"k_proj": 5}}),
    ("WAVEFT", {**TARGETS, "n_frequency": 100, "proportional_parameters": True}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


def test_ia3_on_conv1d_equals_peft() -> None:
    assert_equals_peft(GPT2, "causal-lm", "IA3", {})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("C3A", {**TARGETS, "block_size": 256}, "a divisor of 48"),
    ("FOURIERFT", {**TARGETS, "n_frequency": 5000}, "at most 1152, the entries of"),
    ("IA3", {"target_modules": ["q_proj"], "feedforward_modules": ["down_proj"]}, "some of target_modules"),
    ("MISS", {**TARGETS, "r": 64}, "at most 48, the input size"),
    ("MISS", {**TARGETS, "r": 9, "init_weights": "bat"}, "a divisor of 48 and 24"),
    ("MISS", {**TARGETS, "r": 8, "mini_r": 7, "init_weights": "mini"}, "a divisor of 24"),
    ("OSF", {**TARGETS, "effective_rank": 0}, "a positive rank or fraction"),
    ("SHIRA", TARGETS, "at most 1152 entries"),
    ("SHIRA", {**TARGETS, "mask_type": "top"}, "random"),
    ("SUPERTUNING", {**TARGETS, "sparsity": 1.0}, "at least 0 and below 1"),
    ("WAVEFT", TARGETS, "at most 1152"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
