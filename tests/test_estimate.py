"""The answer: its JSON keys, its invariants, and that it can be read back."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

import memplan
from memplan.estimate import (
    SCHEMA_VERSION,
    BytesPerParameter,
    Component,
    ComponentBytes,
    Estimate,
    Fits,
    Parameters,
    Peak,
    Phase,
    Provenance,
    VerdictReport,
)

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "tie_word_embeddings": False,
}

# The public contract. A key may be added; one that is renamed or taken away breaks whoever reads the JSON.
TOP_KEYS = [
    "schema_version", "recipe", "recipe_sources", "parameters", "bytes_per_parameter", "peak", "components", "timeline",
    "host_bytes", "verdict", "assumptions", "unsupported", "provenance", "versions",
]  # fmt: skip
NESTED_KEYS = {
    "parameters": ["total", "trainable"],
    "bytes_per_parameter": ["weights", "gradients", "optimizer"],
    "peak": ["live_bytes", "allocated_bytes", "reserved_bytes", "device_bytes", "step", "phase", "at"],
    "verdict": ["gpu", "usable_bytes", "expected_bytes", "upper_bytes", "headroom_bytes", "fits", "margin"],
}
ROW_KEYS = {"components": ["component", "bytes"], "timeline": ["step", "phase", "peak_bytes", "end_bytes"]}
COMPONENTS = [
    "weights", "quantization_state", "adapters", "buffers", "gradients", "master_weights", "optimizer_states",
    "activations", "logits_and_loss", "temporaries", "kv_cache", "allocator_cache", "cuda_context",
]  # fmt: skip


def small(**keys: Any) -> Estimate:
    return memplan.estimate(**{"model": LLAMA, "micro_batch_size": 2, "sequence_length": 32, **keys})


# -- the contract -----------------------------------------------------------------------------------------


def test_json_keys_of_the_contract() -> None:
    found = json.loads(small(gpu="rtx-4090").to_json())
    assert list(found) == TOP_KEYS
    for key, names in NESTED_KEYS.items():
        assert list(found[key]) == names, key
    for key, names in ROW_KEYS.items():
        assert found[key]
        assert {tuple(row) for row in found[key]} == {tuple(names)}, key
    assert found["schema_version"] == SCHEMA_VERSION == 1
    assert found["provenance"] == "analytic"


def test_without_a_gpu_the_verdict_is_null() -> None:
    assert json.loads(small().to_json())["verdict"] is None


def test_the_closed_sets() -> None:
    assert [component.value for component in Component] == COMPONENTS
    steps = ["load", "forward", "backward", "optimizer_step"]
    assert [phase.value for phase in Phase] == [*steps, "evaluation", "generation", "save", "merge"]
    assert [fits.value for fits in Fits] == ["fits", "uncertain", "does_not_fit"]
    assert [provenance.value for provenance in Provenance] == ["analytic", "trace", "measured"]


def test_every_size_is_an_integer() -> None:
    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(entry, f"{path}.{key}")
        elif isinstance(value, list):
            for entry in value:
                walk(entry, path)
        elif path.endswith("bytes"):
            assert type(value) is int, path

    walk(json.loads(small(gpu="rtx-4090", method="qlora").to_json()), "")


def test_every_key_of_the_recipe_has_a_source() -> None:
    for keys in ({}, {"method": "qlora", "gpu": "t4"}, {"task": "sequence-classification"}):
        found = json.loads(small(**keys).to_json())
        assert list(found["recipe"]) == list(found["recipe_sources"])
        assert all(found["recipe_sources"].values())


def test_the_receipt_is_no_part_of_the_json() -> None:
    estimate = small()
    assert estimate.lines
    assert "lines" not in json.loads(estimate.to_json())


def test_json_is_compact_on_demand_and_always_the_same() -> None:
    estimate = small(gpu="rtx-4090")
    assert "\n" not in estimate.to_json(indent=None)
    assert json.loads(estimate.to_json(indent=None)) == json.loads(estimate.to_json())


@pytest.mark.parametrize("gpu", [None, "rtx-4090"])
def test_round_trip(gpu: str | None) -> None:
    estimate = small(method="lora", gpu=gpu)
    again = Estimate.model_validate_json(estimate.to_json())
    assert again.to_json() == estimate.to_json()
    assert (again.peak, again.verdict_report) == (estimate.peak, estimate.verdict_report)


def test_the_recipe_in_the_answer_asks_the_same_question() -> None:
    for keys in ({}, {"method": "lora", "lora_r": 4}, {"method": "qlora", "gpu": "rtx-4090"}):
        estimate = small(**keys)
        again = memplan.estimate(**json.loads(estimate.to_json())["recipe"])
        assert (again.peak, again.components, again.timeline) == (estimate.peak, estimate.components, estimate.timeline)


# -- invariants -------------------------------------------------------------------------------------------


def make(**changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "recipe": {},
        "parameters": Parameters(total=10, trainable=5),
        "bytes_per_parameter": BytesPerParameter(weights=2, gradients=2, optimizer=12),
        "peak": peak(1024, 1024, 2048, 4096),
        "components": (
            ComponentBytes(component=Component.WEIGHTS, bytes=512),
            ComponentBytes(component=Component.ACTIVATIONS, bytes=512),
        ),
        "timeline": (),
        "provenance": Provenance.ANALYTIC,
    }
    return Estimate(**{**values, **changes})


def peak(live: int, allocated: int, reserved: int, device: int) -> Peak:
    return Peak(
        live_bytes=live,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=device,
        step=1,
        phase=Phase.BACKWARD,
        at="mm in lm_head",
    )


def verdict(fits: Fits) -> VerdictReport:
    return VerdictReport(
        gpu="t4", usable_bytes=1, expected_bytes=1, upper_bytes=1, headroom_bytes=0, fits=fits, margin="none"
    )


def test_a_sound_estimate_is_made() -> None:
    estimate = make()
    assert estimate.component_bytes(Component.WEIGHTS) == 512
    assert estimate.component_bytes(Component.GRADIENTS) == 0
    assert estimate.parameters.trainable_percent == 50
    assert estimate.bytes_per_parameter.total == 16
    assert Parameters(total=0, trainable=0).trainable_percent == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"components": ()},
        {"components": (ComponentBytes(component=Component.WEIGHTS, bytes=1023),)},
        {"peak": peak(1024, 1023, 2048, 4096)},
        {"peak": peak(1024, 1024, 1023, 4096)},
        {"peak": peak(1024, 1024, 2048, 2047)},
        {"unsupported": ("flash",), "verdict_report": verdict(Fits.FITS)},
    ],
)
def test_an_unsound_one_is_not(changes: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, pydantic.ValidationError)):
        make(**changes)


@pytest.mark.parametrize("fits", [Fits.UNCERTAIN, Fits.DOES_NOT_FIT])
def test_something_unsupported_may_still_not_fit(fits: Fits) -> None:
    assert make(unsupported=("flash",), verdict_report=verdict(fits)).verdict().fits is fits


def test_an_estimate_is_frozen_and_takes_no_other_keys() -> None:
    estimate = make()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        estimate.host_bytes = 5
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        make(peak_gib=1)


# -- estimates of real runs -------------------------------------------------------------------------------


def test_the_timeline_is_load_and_two_steps() -> None:
    estimate = small()
    assert [(point.step, point.phase.value) for point in estimate.timeline] == [
        (0, "load"),
        (1, "forward"), (1, "backward"), (1, "optimizer_step"),
        (2, "forward"), (2, "backward"), (2, "optimizer_step"),
    ]  # fmt: skip
    assert all(point.end_bytes <= point.peak_bytes for point in estimate.timeline)
    assert estimate.peak.live_bytes == max(point.peak_bytes for point in estimate.timeline)
    at = next(point for point in estimate.timeline if point.peak_bytes == estimate.peak.live_bytes)
    assert (at.step, at.phase) == (estimate.peak.step, estimate.peak.phase)


def test_a_recipe_and_keywords_are_one_question() -> None:
    recipe = memplan.Recipe(model=LLAMA, sequence_length=32)
    assert memplan.estimate(recipe, micro_batch_size=2).to_json() == small().to_json()
    with pytest.raises(memplan.InputError) as caught:
        memplan.estimate({"model": LLAMA})  # type: ignore[arg-type]
    assert str(caught.value) == 'a Recipe was expected, not dict\nfor example estimate(model="...", method="lora")'


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gpu": "mi300x"}, "the kernels of"),
        ({"gpu": "h100-sxm-80gb", "dtype": "bfloat16"}, "attention heads of 12 elements"),
        ({"gpu": "h100-sxm-80gb", "method": "olora"}, "cuSOLVER's workspace for the QR decompositions"),
        ({"gpu": "h100-sxm-80gb", "gpus": 2}, "parallelism over 2 GPUs"),
    ],
)
def test_nothing_fits_where_part_of_the_run_is_not_covered(keys: dict[str, Any], words: str) -> None:
    estimate = small(**keys)
    assert any(text.startswith(words) for text in estimate.unsupported)
    assert estimate.verdict_report is not None
    assert estimate.verdict_report.fits is Fits.UNCERTAIN


def test_only_fits_is_true() -> None:
    assert [bool(word) for word in Fits] == [True, False, False]


def test_what_is_not_walked_is_a_lower_bound_and_says_so() -> None:
    estimate = small(precision="master", gpu="h100-sxm-80gb")
    assert estimate.unsupported == ("the step under precision master; model states are exact",)
    assert estimate.timeline == ()
    assert estimate.peak.at == "model states alone: a lower bound, the step is not covered"
    assert estimate.verdict().fits is Fits.UNCERTAIN
    assert estimate.component_bytes(Component.MASTER_WEIGHTS) > 0
    assert sum(line.bytes for line in estimate.lines) == estimate.peak.live_bytes


def test_model_states_are_those_of_the_estimate() -> None:
    for keys in ({}, {"method": "lora"}, {"method": "qlora"}, {"precision": "master"}):
        state = memplan.model_states(model=LLAMA, **keys)
        estimate = small(**keys)
        assert (state.parameters, state.bytes_per_parameter) == (estimate.parameters, estimate.bytes_per_parameter)
