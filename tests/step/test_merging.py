"""Merging an adapter into the base: walk against trace, and that the merged model needs no more than the base."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.errors import InputError
from memplan.estimate import Component, Estimate, Phase
from memplan.prepare import prepare
from memplan.resolve import resolve
from tests.methods.agreement import GPT2, Agreement, recipe

MERGES: dict[str, Any] = {"method": "lora", "merge_and_unload": True, "micro_batch_size": 1, "sequence_length": 16}
EVERYWHERE = {"peft": {"target_modules": "all-linear"}}
DORA = {"peft": {"use_dora": True}}
FOUR = {"load_in_4bit": True}
TWICE = {**FOUR, "bnb_4bit_use_double_quant": True, "autocast_adapter_dtype": False}
EIGHT = {"load_in_8bit": True}
CASES: dict[str, dict[str, Any]] = {
    name: {**MERGES, **keys}
    for name, keys in {
        "amp": {"precision": "amp", **EVERYWHERE},
        "amp in float16, scaled": {"precision": "amp", "dtype": "float16"},
        "rslora on an embedding, 16-bit adapters, a small batch": {
            "peft": {"use_rslora": True, "target_modules": ["embed_tokens", "down_proj"]}, "autocast_adapter_dtype": False,
            "sequence_length": 3,
        },
        "Conv1D, outputs kept, 8-bit states": {
            "model": GPT2, "keep_outputs": True, "optim": "adamw_bnb_8bit", "gradient_accumulation_steps": 2,
        },
        "evaluated and generated": {"eval_strategy": "steps", "max_new_tokens": 4},
        "qlora": {**FOUR, **EVERYWHERE, "micro_batch_size": 13, "sequence_length": 129},
        "qlora, quantized twice, 16-bit adapters": TWICE,
        "8 bits": EIGHT,
        "dora": {"peft": {"use_dora": True, "target_modules": "all-linear"}},
        "dora in 4 bits": {**FOUR, **DORA},
        "loha": {"method": "loha", **EVERYWHERE},
        "lokr": {"method": "lokr", **EVERYWHERE},
        "ia3": {"method": "ia3"},
        "vera": {"method": "vera", **EVERYWHERE},
        "vera in 4 bits": {"method": "vera", **FOUR},
        "vera in 4 bits, amp": {
            "method": "vera", **FOUR, "precision": "amp", "dtype": "float32", "micro_batch_size": 13, "sequence_length": 129,
        },
        "one optimizer for each": {"optimizer_in_backward": True, "max_grad_norm": 0.0, "optim": "adamw_torch"},
        "vera, one optimizer for each": {
            "method": "vera", "optimizer_in_backward": True, "max_grad_norm": 0.0, "optim": "adafactor",
        },
        "oft": {"method": "oft", **EVERYWHERE},
        "oft in 8 bits": {"method": "oft", **EIGHT},
        "miss": {"method": "miss"},
        "miss in 4 bits": {"method": "miss", **FOUR},
        "adalora": {"method": "adalora", "peft": {"total_step": 100}},
    }.items()
}  # fmt: skip
# Every method in every type of weights and adapters that it can be merged in.
EVERY: dict[str, dict[str, Any]] = {
    f"{name}, {course}": {**MERGES, **keys, **types}
    for name, keys, quantized in (
        ("lora", EVERYWHERE, True), ("dora", DORA, True), ("loha", {"method": "loha"}, False),
        ("lokr", {"method": "lokr"}, False), ("ia3", {"method": "ia3"}, False), ("vera", {"method": "vera"}, True),
        ("oft", {"method": "oft"}, True), ("miss", {"method": "miss"}, True),
        ("adalora", {"method": "adalora", "peft": {"total_step": 100}}, False),
    )
    for course, types in {
        "bf16": {}, "fp32": {"precision": "fp32"}, "16-bit adapters": {"autocast_adapter_dtype": False},
        "float16": {"dtype": "float16", "precision": "pure"}, "4 bits": FOUR, "4 bits twice": TWICE, "8 bits": EIGHT,
    }.items()
    if (quantized or "bits" not in course.split()) and (name != "oft" or course not in ("fp32", "16-bit adapters"))
}  # fmt: skip
COMMON = Agreement(CASES)
WHOLE = Agreement(EVERY)


@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)
    assert COMMON.compared[name].phases[-1].phase == "merge"


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY)
def test_walk_equals_trace_in_every_type(name: str) -> None:
    if name == "lora, 4 bits" or name == "lora, 4 bits twice":
        pytest.skip("16 rows: bitsandbytes' own choice between kernels")
    WHOLE.check(name)


def end_of(found: Estimate, phase: Phase) -> int:
    return [point.end_bytes for point in found.timeline if point.phase is phase][-1]


@pytest.mark.parametrize(
    "keys",
    [
        {"precision": "pure"}, {"precision": "amp"}, {"precision": "fp32"}, DORA, FOUR, {**FOUR, **DORA}, TWICE, EIGHT,
        {"method": "loha"}, {"method": "lokr"}, {"method": "ia3"}, {"method": "vera"}, {"method": "oft"}, {"method": "miss"},
    ],
    ids=str,
)  # fmt: skip
def test_a_merged_model_needs_no_more_than_the_base(keys: dict[str, Any]) -> None:
    asked = recipe(**{**MERGES, **keys})
    merged = memplan.estimate(asked)
    state = prepare(resolve(asked)).state
    added = state.loaded[Component.ADAPTERS] + sum(buffer.data_bytes for buffer in state.added_buffers)
    base = sum(state.loaded.values()) - added
    workspaces = 2 * 8_519_680  # cuBLAS's, of two threads, which nothing gives back
    assert added
    assert end_of(merged, Phase.MERGE) == base + workspaces
    assert end_of(merged, Phase.LOAD) - base in (added, added + workspaces // 2)


def test_merging_can_be_the_peak_and_says_where() -> None:
    found = memplan.estimate(
        recipe(**{**MERGES, "peft": {"target_modules": ["lm_head", "q_proj"], "r": 1}, "sequence_length": 1})
    )
    assert found.peak.phase is Phase.MERGE
    assert found.peak.at == "mul in lm_head"
    assert sum(line.bytes for line in found.lines) == found.peak.live_bytes


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"method": "boft"}, "merging boft on model.layers.0.self_attn.q_proj into the base"),
        ({"method": "prompt_tuning", "num_virtual_tokens": 8}, "merging prompt_tuning into the base"),
        ({"method": "ia3", **FOUR}, "which PEFT refuses for quantized weights"),
        ({"method": "loha", **EIGHT}, "which PEFT refuses for quantized weights"),
        ({"method": "oft", "precision": "fp32"}, "leaves autograd's graph behind"),
        (
            {"method": "miss", "peft": {"target_modules": ["down_proj"], "r": 64}},
            "merging miss on model.layers.0.mlp.down_proj",
        ),
        ({"peft": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"peft": {"lora_bias": True}}, "layers without a bias"),
        ({**FOUR, "keep_outputs": True}, "the last step's graph may keep weights that have been replaced"),
    ],
)
def test_what_is_not_walked_is_said(keys: dict[str, Any], text: str) -> None:
    found = memplan.estimate(recipe(**{**MERGES, **keys}))
    assert any(text in entry for entry in found.unsupported)


def test_there_is_something_to_merge() -> None:
    with pytest.raises(InputError, match="merge_and_unload is given") as caught:
        memplan.estimate(recipe(merge_and_unload=True))
    assert "no adapter" in caught.value.hint
