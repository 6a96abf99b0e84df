from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.oft.layer import OFTLayer

import memplan
from memplan.agreement.cases import small_config
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods import adapt
from memplan.methods.orthogonal import nearest_divisor
from memplan.recipe import Recipe
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import LLAMA, VIT

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("BOFT", TARGETS),
    ("BOFT", {**TARGETS, "boft_block_size": 0, "boft_block_num": 4, "bias": "boft_only"}),
    ("HRA", TARGETS),
    ("OFT", TARGETS),
    ("OFT", {**TARGETS, "oft_block_size": 0, "r": 5}),
    ("OFT", {**TARGETS, "block_share": True, "oft_block_size": 7}),
    ("OFT", {"target_modules": ["embed_tokens"], "oft_block_size": 8}),
    ("PSOFT", {**TARGETS, "r": 6}),
    ("PSOFT", {**TARGETS, "r": 6, "psoft_orth": False, "psoft_mag_a": False}),
    ("ROAD", {**TARGETS, "group_size": 8}),
    ("ROAD", {**TARGETS, "group_size": 8, "variant": "road_2"}),
    ("ROAD", {**TARGETS, "group_size": 8, "variant": "road_4"}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@pytest.mark.parametrize("peft_type", ["OFT", "BOFT", "HRA"])
def test_convolution_equals_peft(peft_type: str) -> None:
    assert_equals_peft(VIT, "image-classification", peft_type, {"target_modules": ["projection"]})


@given(size=st.integers(1, 500), wanted=st.integers(1, 600))
def test_nearest_divisor_equals_peft(size: int, wanted: int) -> None:
    assert nearest_divisor(size, wanted) == OFTLayer.adjust_oft_parameters(None, size, wanted)


def test_butterflies_that_need_a_compiler_are_not_covered() -> None:
    with pytest.raises(UnsupportedError, match="boft_n_butterfly_factor above 1"):
        adapt(architecture(LLAMA, "causal-lm"), "boft", {"boft_n_butterfly_factor": 2})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("OFT", {"r": 4, "oft_block_size": 4}, "either r or oft_block_size"),
    ("OFT", {"r": 0, "oft_block_size": 0}, "either r or oft_block_size"),
    ("BOFT", {**TARGETS, "boft_block_size": 7}, "a divisor of 48, the input size of model.layers.0.self_attn.k_proj"),
    ("BOFT", {**TARGETS, "boft_block_num": 4}, "either boft_block_size or boft_block_num"),
    ("BOFT", {**TARGETS, "boft_block_size": "x"}, "a number"),
    ("PSOFT", {**TARGETS, "r": 25}, "at most 24"),
    ("ROAD", {**TARGETS, "variant": "road_3"}, "road_1, road_2, road_4"),
    ("ROAD", TARGETS, "a divisor of 24, the output size"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
def test_a_run_that_stops_on_latents_is_not_walked(model_type: str) -> None:
    run: dict[str, Any] = {"model": small_config(model_type), "method": "oft", "sequence_length": 16}
    assert not memplan.estimate(Recipe(**run, target_modules=["q_b_proj"])).unsupported
    stopped = memplan.estimate(Recipe(**run, target_modules=["kv_b_proj"]))
    assert [text for text in stopped.unsupported if "kv_b_proj" in text]
    assert stopped.verdict("h100").fits == "uncertain"


@pytest.mark.parametrize("mode", [False, True, "reentrant"])
def test_butterflies_under_autocast_are_walked(mode: bool | str) -> None:
    run: dict[str, Any] = {"model": small_config("llama"), "method": "boft", "dtype": "float32", "precision": "amp"}
    found = memplan.estimate(
        Recipe(**run, sequence_length=16, target_modules=["q_proj"], activation_checkpointing=mode)
    )
    assert not found.unsupported
