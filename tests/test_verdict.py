"""Whether it fits: the boundaries to the byte, and that nothing unsupported ever does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memplan
from memplan.catalog.calibration import STATED_FLOOR_BYTES, run_of, stated_bytes
from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import Gpu, get_gpu, list_gpus
from memplan.errors import InputError, UnknownNameError
from memplan.estimate import Fits
from memplan.units import GIB
from memplan.verdict import judge, upper_reserved_bytes

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
CARD = get_gpu("rtx-4090")


def card(usable_bytes: int) -> Gpu:
    return replace(CARD, usable_bytes=usable_bytes)


def test_the_margin_is_a_fifth_and_2_gib_at_least() -> None:
    assert stated_bytes(0) == stated_bytes(10 * GIB) == STATED_FLOOR_BYTES == 2 * GIB
    assert stated_bytes(10 * GIB + 5) == 2 * GIB + 1
    assert stated_bytes(40 * GIB) == 8 * GIB


@pytest.mark.parametrize("reserved", [0, 1, 3 * GIB, 20 * GIB, 100 * GIB])
def test_boundaries_to_the_byte(reserved: int) -> None:
    context = cuda_context(CARD)
    expected = reserved + context.expected_bytes
    upper = reserved + context.high_bytes + stated_bytes(expected)
    at = {usable: judge(card(usable), reserved, False).fits for usable in (expected - 1, expected, upper - 1, upper)}
    assert at == {
        expected - 1: Fits.DOES_NOT_FIT,
        expected: Fits.UNCERTAIN,
        upper - 1: Fits.UNCERTAIN,
        upper: Fits.FITS,
    }
    unsupported = {usable: judge(card(usable), reserved, True).fits for usable in at}
    assert unsupported == {**at, upper: Fits.UNCERTAIN}


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**45), st.integers(0, 2**45), st.booleans())
def test_the_report_explains_its_word(reserved: int, usable: int, unsupported: bool) -> None:
    report = judge(card(usable), reserved, unsupported)
    assert report.headroom_bytes == report.usable_bytes - report.expected_bytes
    assert report.expected_bytes <= report.upper_bytes
    assert (report.fits is Fits.DOES_NOT_FIT) == (report.headroom_bytes < 0)
    if report.fits is Fits.FITS:
        assert report.upper_bytes <= usable
        assert not unsupported


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**42), st.integers(0, 2**40), st.booleans())
def test_needing_more_never_helps(reserved: int, more: int, unsupported: bool) -> None:
    order = [Fits.FITS, Fits.UNCERTAIN, Fits.DOES_NOT_FIT]
    usable = CARD.usable_bytes
    less = judge(card(usable), reserved, unsupported).fits
    assert order.index(judge(card(usable), reserved + more, unsupported).fits) >= order.index(less)
    assert order.index(judge(card(usable + more), reserved, unsupported).fits) <= order.index(less)


@pytest.mark.parametrize("gpu", [gpu.id for gpu in list_gpus()])
def test_an_empty_run_fits_every_gpu_of_the_catalog(gpu: str) -> None:
    found = judge(get_gpu(gpu), 0, False)
    assert found.fits is Fits.FITS
    assert (found.gpu, found.usable_bytes) == (gpu, get_gpu(gpu).usable_bytes)


# -- through estimates ------------------------------------------------------------------------------------


def test_the_recipes_gpu_or_another() -> None:
    estimate = memplan.estimate(model=LLAMA, sequence_length=16, gpu="rtx-4090")
    assert estimate.verdict() is estimate.verdict_report
    assert estimate.verdict("RTX 4090") is estimate.verdict_report
    other = estimate.verdict("t4")
    assert (other.gpu, other.usable_bytes) == ("t4", get_gpu("t4").usable_bytes)
    run = run_of(estimate.recipe, "llama")
    assert other == judge(get_gpu("t4"), estimate.peak.reserved_bytes, False, run)


def test_no_gpu_and_unknown_gpus() -> None:
    estimate = memplan.estimate(model=LLAMA, sequence_length=16)
    with pytest.raises(InputError) as caught:
        estimate.verdict()
    assert str(caught.value) == ('no GPU was named\nname one: estimate.verdict("rtx-4090"), or gpu= in the recipe')
    with pytest.raises(UnknownNameError, match="unknown GPU 'rtx-4091'"):
        estimate.verdict("rtx-4091")


def test_a_model_that_cannot_fit() -> None:
    estimate = memplan.estimate(model="meta-llama/Llama-3.1-70B", precision="fp32", sequence_length=16, gpu="t4")
    assert estimate.verdict().fits is Fits.DOES_NOT_FIT
    assert estimate.verdict().headroom_bytes < 0


UNSUPPORTED: list[dict[str, Any]] = [
    {"precision": "master"},
    {"precision": "master-fp32-grads"},
    {"stack": "unsloth"},
    {"loss": "fused_linear"},
    {"packing": True},
    {"attn_implementation": "flash_attention_2"},
    {"gpus": 2},
    {"method": "lora", "quantization_config": {"quant_method": "gptq"}},
    {"method": "lora", "load_in_8bit": True},
    {"task": "sequence-classification"},
    {"optim": "apollo_adamw_layerwise", "optim_target_modules": "all-linear"},
    {"optim": "lomo", "dtype": "float16", "precision": "pure", "task": "sequence-classification"},
    {"method": "oft"},
    {"method": "cartridge", "num_virtual_tokens": 4},
]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from(UNSUPPORTED),
    st.sampled_from(["b200", "mi300x", "h100-sxm-80gb", "rtx-3060-12gb", "t4"]),
    st.integers(1, 4),
    st.sampled_from([16, 128]),
)
def test_nothing_unsupported_ever_fits(keys: dict[str, Any], gpu: str, batch: int, sequence: int) -> None:
    estimate = memplan.estimate(model=LLAMA, gpu=gpu, micro_batch_size=batch, sequence_length=sequence, **keys)
    for name in (None, gpu, "b200"):
        found = estimate.verdict(name).fits
        assert (found is Fits.FITS) == (not estimate.unsupported)


@pytest.mark.parametrize("gpu", [gpu.id for gpu in list_gpus()])
def test_every_gpu_gets_an_answer(gpu: str) -> None:
    estimate = memplan.estimate(model=LLAMA, gpu=gpu, method="lora", sequence_length=16)
    assert estimate.verdict().gpu == gpu
    assert estimate.peak.device_bytes == estimate.verdict().expected_bytes


def test_what_torch_may_reserve_lies_below_the_largest_context() -> None:
    gpu = get_gpu("rtx-4090")
    verdict = judge(gpu, 10 * GIB, unsupported=False)
    assert upper_reserved_bytes(verdict) == verdict.upper_bytes - cuda_context(gpu).high_bytes
    assert 10 * GIB < upper_reserved_bytes(verdict) < verdict.upper_bytes
