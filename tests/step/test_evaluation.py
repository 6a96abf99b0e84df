"""Evaluation between two steps: walk against trace, and how its parts relate."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.estimate import Phase
from memplan.prepare import prepare
from memplan.resolve import resolve
from memplan.training_step import recorded_step, replay
from tests.methods.agreement import DECODER, GPT2, QUANTIZED, QWEN2, Agreement, recipe

KEPT = {"prediction_loss_only": False, "max_eval_samples": 7}
T5: dict[str, Any] = {
    "model_type": "t5", "d_model": 96, "d_kv": 16, "d_ff": 200, "num_layers": 2, "num_heads": 6, "vocab_size": 1003,
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 200,
    "vocab_size": 1003,
}  # fmt: skip
EVALUATES: dict[str, Any] = {"eval_strategy": "steps", "per_device_eval_batch_size": 3}
CASES: dict[str, dict[str, Any]] = {
    name: {**EVALUATES, **keys}
    for name, keys in {
        "full, bf16": {},
        "full, amp, logits kept": {"precision": "amp", **KEPT},
        "full, fp32, logits moved to the host": {"precision": "fp32", **KEPT, "eval_accumulation_steps": 2},
        "lora with dropout, checkpointed": {
            "method": "lora", "peft": {"lora_dropout": 0.1}, "activation_checkpointing": True, **KEPT,
        },
        "lora, fp32, one row": {"method": "lora", "precision": "fp32", "per_device_eval_batch_size": 1},
        "qlora": {"method": "qlora", "sequence_length": 520, "load_in_4bit": True},
        "qlora, amp, padded, accumulated": {
            "method": "qlora", "precision": "amp", "padding": True, "gradient_accumulation_steps": 2, **QUANTIZED, **KEPT,
        },
        "gpt2 with dropout, eager": {"model": GPT2, "attn_implementation": "eager", **KEPT},
        "qwen2 classifying, fp16": {
            "model": QWEN2, "method": "lora", "task": "sequence-classification", "dtype": "float16", "precision": "pure",
            **KEPT,
        },
        "t5 with its encoder's states": {"model": T5, "precision": "amp", "target_length": 33, **KEPT},
        "bert": {"model": BERT, "precision": "amp", "sequence_length": 65, **KEPT},
        # Its projections take the embedding's result itself, which autocast's cache keeps where it was made a leaf.
        "olmo2, checkpointed, amp": {
            "model": {"model_type": "olmo2", **DECODER, "dtype": "float32"}, "precision": "amp",
            "activation_checkpointing": True,
        },
        "outputs and cache kept": {"keep_outputs": True, "use_cache": True, **KEPT},
    }.items()
}  # fmt: skip
EVERY = Agreement(CASES)
COMMON = Agreement({name: keys for name, keys in CASES.items() if not name.startswith(("qlora", "gpt2", "full, fp32"))})


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace_in_every_case(name: str) -> None:
    EVERY.check(name)


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)
    assert [phase.phase for phase in COMMON.compared[name].phases].count("evaluation") == 2


def test_an_evaluation_can_be_the_peak() -> None:
    small = recipe(method="lora", micro_batch_size=1, activation_checkpointing=True)
    large = small.replace(eval_strategy="steps", per_device_eval_batch_size=16)
    assert memplan.estimate(small).peak.phase is not Phase.EVALUATION
    found = memplan.estimate(large)
    assert found.peak.phase is Phase.EVALUATION
    assert sum(line.bytes for line in found.lines) == found.peak.live_bytes


def test_more_samples_need_more_only_where_their_logits_are_kept() -> None:
    def peak(**keys: Any) -> int:
        points = memplan.estimate(recipe(**EVALUATES, **keys)).timeline
        return max(point.peak_bytes for point in points if point.phase is Phase.EVALUATION)

    assert peak(max_eval_samples=9) == peak(max_eval_samples=60)
    kept = [peak(prediction_loss_only=False, max_eval_samples=samples) for samples in (30, 60, 120)]
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), abs=4096)  # sizes are rounded to blocks
    assert kept[0] < kept[1]
    bounded = peak(prediction_loss_only=False, max_eval_samples=60, eval_accumulation_steps=10)
    assert bounded == kept[0]


def test_steps_are_the_same_with_an_evaluation_between_them() -> None:
    plain, evaluated = (memplan.estimate(recipe(**keys)).timeline for keys in ({}, EVALUATES))
    assert plain == tuple(point for point in evaluated if point.phase is not Phase.EVALUATION)


def test_one_recording_answers_for_another_sequence_length() -> None:
    long = resolve(recipe(**EVALUATES, sequence_length=257))
    step, sizes = recorded_step(long, prepare(long))
    short = resolve(recipe(**EVALUATES, sequence_length=193))
    again, fewer = recorded_step(short, prepare(short))
    assert again is step
    assert replay(short, prepare(short), again, fewer).max_live_bytes == again.walker.peak_bytes(fewer)
    assert step.walker.peak_bytes(sizes) > step.walker.peak_bytes(fewer)
