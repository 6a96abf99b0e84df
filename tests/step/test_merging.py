"""Merging an adapter into the base: walk against trace, and that the merged model needs no more than the base."""

from __future__ import annotations

from typing import Any

import pytest

import memplan.engine
from memplan.errors import InputError
from memplan.estimate import Component, Estimate, Phase
from tests.methods.agreement import GPT2, Agreement, recipe

MERGES: dict[str, Any] = {"method": "lora", "merge_and_unload": True}
EVERYWHERE = {"peft": {"target_modules": "all-linear"}}
CASES: dict[str, dict[str, Any]] = {
    name: {**MERGES, **keys}
    for name, keys in {
        "bf16": {},
        "amp": {"precision": "amp", **EVERYWHERE},
        "fp32": {"precision": "fp32", **EVERYWHERE},
        "rslora on an embedding, 16-bit adapters, a small batch": {
            "peft": {"use_rslora": True, "target_modules": ["embed_tokens", "down_proj"]}, "autocast_adapter_dtype": False,
            "micro_batch_size": 1, "sequence_length": 3,
        },
        "Conv1D, outputs kept, 8-bit states": {
            "model": GPT2, "keep_outputs": True, "optim": "adamw_bnb_8bit", "gradient_accumulation_steps": 2,
        },
        "evaluated and generated": {"eval_strategy": "steps", "max_new_tokens": 4},
    }.items()
}  # fmt: skip
COMMON = Agreement(CASES)


@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)
    assert COMMON.compared[name].phases[-1].phase == "merge"


def end_of(found: Estimate, phase: Phase) -> int:
    return [point.end_bytes for point in found.timeline if point.phase is phase][-1]


@pytest.mark.parametrize("precision", ["pure", "amp", "fp32"])
def test_a_merged_model_needs_no_more_than_the_base(precision: str) -> None:
    merged = memplan.estimate(recipe(**MERGES, **EVERYWHERE, precision=precision))
    loaded = memplan.engine.model_states(recipe(**MERGES, **EVERYWHERE, precision=precision)).loaded
    base = loaded[Component.WEIGHTS] + loaded[Component.BUFFERS]
    workspaces = 2 * 8_519_680  # cuBLAS's, of two threads, which nothing gives back
    assert end_of(merged, Phase.MERGE) == base + workspaces
    assert end_of(merged, Phase.LOAD) == base + loaded[Component.ADAPTERS]


def test_merging_can_be_the_peak_and_says_where() -> None:
    found = memplan.estimate(
        recipe(**MERGES, peft={"target_modules": ["lm_head", "q_proj"], "r": 1}, micro_batch_size=1, sequence_length=1)
    )
    assert found.peak.phase is Phase.MERGE
    assert found.peak.at == "mul in lm_head"
    assert sum(line.bytes for line in found.lines) == found.peak.live_bytes


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"method": "loha"}, "merging loha into the base"),
        ({"peft": {"use_dora": True}}, "with use_dora into the base"),
        ({"load_in_4bit": True}, "into quantized weights"),
        ({"peft": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"peft": {"lora_bias": True}}, "layers without a bias"),
    ],
)
def test_what_is_not_walked_is_said(keys: dict[str, Any], text: str) -> None:
    found = memplan.estimate(recipe(**{**MERGES, **keys}))
    assert any(text in entry for entry in found.unsupported)


def test_there_is_something_to_merge() -> None:
    with pytest.raises(InputError, match="merge_and_unload is given") as caught:
        memplan.estimate(recipe(merge_and_unload=True))
    assert "no adapter" in caught.value.hint
