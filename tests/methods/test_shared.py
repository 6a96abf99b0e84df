from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.frod.model import _category_from_key

from memplan.errors import InvalidValueError
from memplan.methods import adapt
from memplan.methods.shared import frod_category
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import LLAMA

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("FROD", {**TARGETS, "progressbar": False}),
    ("FROD", {"target_modules": "all-linear", "sparse_rate": 0.1, "progressbar": False}),
    ("PVERA", {**TARGETS, "r": 5}),
    ("RANDLORA", {**TARGETS, "r": 7}),
    ("RANDLORA", {**TARGETS, "r": 8, "sparse": True}),
    ("TINYLORA", TARGETS),
    ("TINYLORA", {**TARGETS, "weight_tying": 0.4, "u": 5}),
    ("TINYLORA", {**TARGETS, "weight_tying": 1.0}),
    ("TINYLORA", {"target_modules": ["embed_tokens", "q_proj"], "r": 3}),
    ("UNILORA", TARGETS),
    ("VBLORA", {**TARGETS, "vector_length": 8, "num_vectors": 11}),
    ("VERA", {}),
    ("VERA", {"target_modules": "all-linear", "r": 11}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@given(
    parts=st.lists(
        st.sampled_from(["encoder", "layer", "3", "attention", "output", "dense", "q_proj", "0"]), min_size=1
    )
)
def test_frod_category_equals_peft(parts: list[str]) -> None:
    path = ".".join(parts)
    assert frod_category(path) == _category_from_key(path)


def test_projections_of_vera_are_buffers_and_not_parameters() -> None:
    found = adapt(architecture(LLAMA, "causal-lm"), "vera", {"r": 5, "target_modules": "all-linear"})
    assert {buffer.name.rpartition("proj.")[2]: buffer.shape for buffer in found.buffers} == {
        "vera_A.default": (5, 80),
        "vera_B.default": (80, 5),
    }
    assert all("lambda" in parameter.name for parameter in found.added)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("VBLORA", {**TARGETS, "vector_length": 256}, "a divisor of 48, a size of model.layers.0.self_attn.k_proj"),
    ("VERA", {**TARGETS, "r": 0}, "a positive integer"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
