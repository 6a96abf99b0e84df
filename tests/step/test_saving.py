"""Saving between two steps: that the trace copies nothing on the device where the walk says so, and where it does copy."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.resolve import resolve
from memplan.trace.estimate import spec_of
from memplan.trace.runner import run_many
from tests.methods.agreement import GPT2, LLAMA, Agreement, recipe

SAVES: dict[str, Any] = {"save_strategy": "steps"}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
TWICE = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
CASES: dict[str, dict[str, Any]] = {
    name: {**SAVES, **keys}
    for name, keys in {
        "full, bf16": {},
        "full, amp, evaluated": {"precision": "amp", "eval_strategy": "steps"},
        "lora, fp32": {"method": "lora", "precision": "fp32"},
        "gpt2, merged at the end": {"model": GPT2, "method": "lora", "merge_and_unload": True},
        "an adapter beside experts": {
            "model": MIXTRAL,
            "method": "lora",
            "peft": {"target_modules": ["q_proj", "o_proj"]},
        },
        "4 bits": {"method": "lora", "load_in_4bit": True},
        "4 bits twice, amp": {**TWICE, "method": "lora", "precision": "amp"},
        "4 bits twice, a head of its own": {
            **TWICE,
            "method": "lora",
            "peft": {"modules_to_save": ["lm_head"]},
            "micro_batch_size": 1,
            "sequence_length": 16,
        },
        "8 bits, ia3": {"method": "ia3", "load_in_8bit": True},
    }.items()
}
COMMON = Agreement(CASES)


@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)
    saved = [phase for phase in COMMON.compared[name].phases if phase.phase == "save"]
    assert [phase.step for phase in saved] == [1, 2]
    # Seven linear layers in each of two; a code book is two blocks.
    copied = 2 * 7 * 1024 if "twice" in name else 0
    assert all(phase.trace_peak_bytes - phase.trace_end_bytes == copied for phase in saved)


@pytest.mark.full_matrix
def test_experts_are_taken_apart_on_the_device() -> None:
    asked = recipe(model=MIXTRAL, **SAVES)
    assert any("the whole of a mixtral model" in text for text in memplan.estimate(asked).unsupported)
    (result,) = run_many([spec_of(resolve(asked))])
    saved = next(phase for phase in result.phases if phase.phase == "save")
    experts = (
        2 * 4 * 2 * 384 * 1000 * 2
    )  # two layers, four experts, gate and up, which are one stacked weight, in 16 bits
    assert saved.peak_bytes - saved.end_bytes == experts


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "p_tuning"])
def test_a_prompt_that_is_encoded_while_it_is_saved_is_not_walked(method: str) -> None:
    run: dict[str, Any] = {"model": LLAMA, "method": method, "num_virtual_tokens": 8, "sequence_length": 64}
    assert not memplan.estimate(**run).unsupported
    assert [text for text in memplan.estimate(**run, **SAVES).unsupported if "save_strategy" in text]
