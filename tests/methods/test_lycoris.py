from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lokr.layer import factorization as peft_factorization

from memplan.errors import InvalidValueError
from memplan.methods import adapt
from memplan.methods.lycoris import factorization
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import LLAMA, VIT

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LOHA", {}),
    ("LOHA", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 3}}),
    ("LOKR", {}),
    ("LOKR", {"target_modules": "all-linear"}),
    ("LOKR", {"target_modules": "all-linear", "r": 2, "decompose_both": True}),
    ("LOKR", {"target_modules": "all-linear", "r": 3, "decompose_factor": 4}),
    ("LOKR", {**TARGETS, "r": 2}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
def test_convolution_equals_peft(peft_type: str, effective: bool) -> None:
    options = {"target_modules": ["projection", "dense"], "r": 3, "use_effective_conv2d": effective}
    assert_equals_peft(VIT, "image-classification", peft_type, options)


@given(dimension=st.integers(1, 3000), factor=st.sampled_from([-1, 1, 2, 3, 4, 7, 8, 16, 64]))
def test_factorization_equals_peft(dimension: int, factor: int) -> None:
    assert factorization(dimension, factor) == peft_factorization(dimension, factor)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("LOHA", {"r": 100, "target_modules": ["q_proj"]}, "at most 48 for model.layers.0.self_attn.q_proj"),
    ("LOHA", {"target_modules": ["embed_tokens"]}, "it is a Embedding; LOHA adapts: conv, linear"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
