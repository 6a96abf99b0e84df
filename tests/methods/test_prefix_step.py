"""The step under prefix tuning against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.adapters.prefix import Prefix
from memplan.training_step import recordings
from memplan.unsupported import unsupported_parts
from tests.methods.agreement import COURSES, DECODER, GPT2, QUANTIZED, QWEN2, Agreement, recipe

PROJECTED = {"num_virtual_tokens": 8, "prefix_projection": True, "encoder_hidden_size": 100}
SLIDING = {"model_type": "mistral", **DECODER, "sliding_window": 20}
QWEN2_MOE = {
    "model_type": "qwen2_moe", **DECODER, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 200,
    "shared_expert_intermediate_size": 328,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    **{name: keys for name, keys in COURSES.items() if "activation_checkpointing" not in keys},
    "projected": {"peft": PROJECTED},
    "projected, amp": {"peft": PROJECTED, "precision": "amp"},
    "eager, amp, padded": {"attn_implementation": "eager", "precision": "amp", "padding": True},
    "nf4": {**QUANTIZED, "activation_checkpointing": False},
    "one row, cache kept": {"micro_batch_size": 1, "sequence_length": 70, "keep_outputs": True, "use_cache": True},
    "outputs kept": {"keep_outputs": True},
    "outputs kept, accumulated, amp": {"keep_outputs": True, "gradient_accumulation_steps": 2, "precision": "amp"},
    "outputs until backward": {"keep_outputs": "backward"},
    "outputs kept, no cache among them": {"model": QWEN2, "keep_outputs": True},
    "T4": {"gpu": "t4", "dtype": "float16", "precision": "pure"},
    "flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "evaluated": {"eval_strategy": "steps", "per_device_eval_batch_size": 3},
    "gpt2": {"model": GPT2},
    "window": {"model": SLIDING},
    "window, eager, padded": {"model": SLIDING, "attn_implementation": "eager", "padding": True},
    "both masks": {"model": QWEN2_MOE},
}
MODELS: dict[str, dict[str, Any]] = {
    model_type: {"model_type": model_type, **DECODER, "pad_token_id": 0}
    for model_type in (
        "qwen2", "qwen3", "smollm3", "granite", "phi3", "olmo", "olmo2", "stablelm", "starcoder2", "cohere", "gemma",
    )
}  # fmt: skip


def agreement(cases: dict[str, dict[str, Any]]) -> Agreement:
    common = {"method": "prefix_tuning", "peft": {"num_virtual_tokens": 7}}
    return Agreement({name: {**common, **keys} for name, keys in cases.items()})


COMMON = agreement(CASES)
EVERY = agreement(
    {
        f"{name}, {course}": {"model": model, **keys}
        for name, model in MODELS.items()
        for course, keys in (
            ("bf16", {}),
            ("kept", {"keep_outputs": True}),
            ("eager, amp", {"attn_implementation": "eager", "precision": "amp"}),
        )
    }
)


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY.cases)
def test_walk_equals_trace_in_every_family(name: str) -> None:
    EVERY.check(name)


def test_a_packed_row_behind_a_prefix_is_said_to_be_unsupported() -> None:
    resolved = resolve(recipe(method="prefix_tuning", peft={"num_virtual_tokens": 7}, packing=True))
    assert any("packed sequences" in text for text in unsupported_parts(resolved, prepare(resolved)).texts)


def test_every_layer_takes_its_own_prefix() -> None:
    resolved = resolve(recipe(method="prefix_tuning", peft={"num_virtual_tokens": 7}))
    (recorded,) = recordings(resolved, prepare(resolved))
    assert {segment.count for segment in recorded.segments} == {1}
    grown = [info.shape for info in recorded.infos if info.op == "cat" and info.shape[2:] == (136, 64)]
    assert grown == [(2, 2, 136, 64)] * 4
    assert Prefix(7).waiting == []


@pytest.mark.parametrize("keys", [
    {"model": {"model_type": "gemma2", **DECODER}},
    {"model": {"model_type": "bloom", "hidden_size": 384, "n_layer": 2, "n_head": 6, "vocab_size": 5003}},
    {"task": "sequence-classification"},
    {"peft": {"num_layers": 1}},
])  # fmt: skip
def test_what_was_not_held_against_a_trace_is_said_to_be_unsupported(keys: dict[str, Any]) -> None:
    common: dict[str, Any] = {"model": {"model_type": "llama", **DECODER}, "sequence_length": 64}
    resolved = resolve(Recipe(**{**common, "method": "prefix_tuning", "num_virtual_tokens": 7, **keys}))
    found = unsupported_parts(resolved, prepare(resolved))
    assert found.step
    assert any("key/value cache" in text for text in found.texts)
