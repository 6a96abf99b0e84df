"""LoRA initialised by decomposing the base weight: walk against trace while loading, and what a verdict makes of cuSOLVER."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.catalog.calibration import SVD_WORKSPACE_BYTES, run_of
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.estimate import Phase
from memplan.resolve import resolve
from memplan.step.adapters import decompositions
from memplan.trace import temporaries
from memplan.trace.estimate import spec_of
from memplan.trace.runner import run_many
from tests.methods.agreement import GPT2, LLAMA, Agreement, recipe

EVERYWHERE = {"target_modules": "all-linear"}
# Layers that are wide, tall, square, and with no more than 32 rows and columns.
SMALL = {**LLAMA, "hidden_size": 24, "intermediate_size": 31, "num_attention_heads": 3, "head_dim": 8}
SMALL |= {"num_key_value_heads": 1, "vocab_size": 131}


def init(name: str, **keys: Any) -> dict[str, Any]:
    return {"method": "lora", "peft": {"init_lora_weights": name, **keys}}


def loftq(bits: int, iterations: int, **keys: Any) -> dict[str, Any]:
    return init("loftq", loftq_config={"loftq_bits": bits, "loftq_iter": iterations}, **keys)


CASES: dict[str, dict[str, Any]] = {
    "pissa, bf16": init("pissa", **EVERYWHERE),
    "pissa, amp": {**init("pissa"), "precision": "amp"},
    "pissa on Conv1D, float16": {**init("pissa"), "model": GPT2, "dtype": "float16", "precision": "pure"},
    "pissa on matrices of no more than 32 rows": {**init("pissa", r=4, **EVERYWHERE), "model": SMALL},
    "pissa, 16-bit adapters, rslora": {**init("pissa", use_rslora=True), "autocast_adapter_dtype": False},
    "pissa_niter_4, bf16": init("pissa_niter_4", **EVERYWHERE),
    "pissa_niter_0, fp32": {**init("pissa_niter_0", r=40), "precision": "fp32"},
    "olora, bf16": init("olora", **EVERYWHERE),
    "olora, fp32": {**init("olora"), "precision": "fp32"},
    "loftq, 4 bits, bf16": {"method": "loftq"},
    "loftq, 4 bits, fp32, three times": {**loftq(4, 3, **EVERYWHERE), "precision": "fp32"},
    "loftq, 8 bits, bf16, twice": loftq(8, 2),
    "orthogonal": init("orthogonal"),
}
COMMON = Agreement(CASES)


@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


def peak_while_loading(**keys: Any) -> int:
    (load,) = [point for point in memplan.estimate(recipe(**keys)).timeline if point.phase is Phase.LOAD]
    return load.peak_bytes - load.end_bytes


def test_loading_borrows_the_float32_copies_of_one_weight() -> None:
    asked = {**init("pissa", target_modules=["lm_head"]), "precision": "pure"}
    weight, side = 5003 * 384 * 4, 384 * 384 * 4
    plain = memplan.estimate(recipe(method="lora", peft={"target_modules": ["lm_head"]})).timeline[0]
    found = memplan.estimate(recipe(**asked)).timeline[0]
    # The float32 weight, U and Vh, B @ A and the rest; the stored weight of half the size is there all the time.
    assert found.peak_bytes - plain.end_bytes == pytest.approx(4 * weight + side + 8_519_680, rel=0.02)


def test_singular_vectors_are_held_for_one_layer_at_a_time() -> None:
    few, many = (
        peak_while_loading(**init("pissa"), model={**LLAMA, "num_hidden_layers": layers}, autocast_adapter_dtype=False)
        for layers in (2, 6)
    )
    assert few == many


@pytest.mark.parametrize("method", ["pissa", "loftq"])
def test_the_upper_bound_holds_the_most_that_the_workspace_of_an_svd_can_be(method: str) -> None:
    plain, found = (memplan.estimate(recipe(method=name, gpu="h100-sxm-80gb")) for name in ("lora", method))
    assert not found.unsupported
    assert any("cuSOLVER" in text for text in found.assumptions)
    bounds = [report.verdict().upper_bytes - report.verdict().expected_bytes for report in (plain, found)]
    assert bounds[1] - bounds[0] >= SVD_WORKSPACE_BYTES
    assert found.verdict().fits is memplan.Fits.FITS
    assert "cuSOLVER" in found.verdict().margin
    # A card that holds the step, but not the workspace: nobody knows.
    assert plain.verdict("rtx-3080-10gb").fits is memplan.Fits.FITS
    assert found.verdict("rtx-3080-10gb").fits is memplan.Fits.UNCERTAIN


def test_only_what_decomposes_by_svd_has_a_bound() -> None:
    for keys, expected in ((init("pissa"), SVD_WORKSPACE_BYTES), (init("olora"), 0), ({"method": "lora"}, 0)):
        assert run_of(resolve(recipe(**keys)).values, "llama").unseen_bytes == expected


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (init("olora"), "to which its interface sets no limit"),
        (init("pissa_niter_4"), "to which its interface sets no limit"),
        (init("eva"), "forward passes over data by which EVA"),
        (init("corda"), "by which CorDA finds its factors"),
        (init("lora_ga"), "backward passes over data"),
        (init("pissa", use_dora=True), "together with use_dora"),
        ({**init("olora"), "load_in_4bit": True}, "on quantized weights"),
        ({**init("loftq", loftq_config={"loftq_bits": 4}), "load_in_8bit": True}, "on quantized weights"),
    ],
)
def test_what_no_bound_is_known_of_never_fits_though_the_step_is_walked(keys: dict[str, Any], text: str) -> None:
    found = memplan.estimate(recipe(**keys, gpu="h100-sxm-80gb"))
    assert any(text in entry for entry in found.unsupported)
    assert found.verdict().fits is memplan.Fits.UNCERTAIN
    assert found.timeline


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({**init("olora"), "model": GPT2}, "whose two factors PEFT swaps"),
        (loftq(4, 1, target_modules=["embed_tokens"]), "embed_tokens, whose two factors PEFT swaps"),
        ({**init("pissa", r=16, **EVERYWHERE), "model": SMALL}, "fewer singular values than the rank 16"),
    ],
)
def test_where_peft_makes_other_factors_the_step_is_not_walked(keys: dict[str, Any], text: str) -> None:
    found = memplan.estimate(recipe(**keys))
    assert any(text in entry for entry in found.unsupported)
    assert not found.timeline


@pytest.mark.full_matrix
@pytest.mark.parametrize("keys", [init("olora"), loftq(4, 1)])
def test_peft_swaps_the_factors_of_conv1d(keys: dict[str, Any]) -> None:
    (failed,) = run_many([spec_of(resolve(recipe(**keys, model=GPT2)))])
    assert "same reduction dim" in str(failed)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"init_lora_weights": "loftq"}, InvalidValueError, "which PEFT asks for"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 2}}, InvalidValueError, "4 or 8"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 0}}, InvalidValueError, "a positive integer"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bit": 4}}, UnknownNameError, "loftq_bits"),
        ({"init_lora_weights": "pissa_niter_many"}, InvalidValueError, "a whole number"),
    ],
)
def test_options_that_peft_refuses_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        memplan.estimate(recipe(method="lora", peft=options))
    assert words in f"{caught.value} {getattr(caught.value, 'hint', '')}"


def test_walk_and_trace_name_one_limit_of_the_batched_svd() -> None:
    assert temporaries.table()["linalg_svd"]["batched_max_size"] == decompositions.BATCHED_MAX_SIZE
