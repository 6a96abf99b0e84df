"""The step under LoRA's variants against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.methods.agreement import COURSES, GPT2, QUANTIZED, QWEN2, Agreement

DORA = {"use_dora": True}
EMBEDDING = {"target_modules": ["embed_tokens", "q_proj"]}
CASES: dict[str, dict[str, Any]] = {
    "DoRA": {"method": "lora", "peft": DORA},
    "DoRA with dropout, biases in the base, amp": {
        "model": QWEN2, "method": "lora", "precision": "amp", "activation_checkpointing": True,
        "peft": {**DORA, "lora_dropout": 0.1, "target_modules": "all-linear"},
    },
    "DoRA on biases": {"model": QWEN2, "method": "lora", "peft": {**DORA, "target_modules": "all-linear"}},
    "DoRA on nf4": {"method": "lora", "peft": DORA, **QUANTIZED},
    "DoRA with dropout on nf4, no autocast": {
        "method": "lora", "peft": {**DORA, "lora_dropout": 0.1}, **QUANTIZED, "precision": "pure",
        "activation_checkpointing": False,
    },
    "LoRA on the embedding": {"method": "lora", "peft": EMBEDDING},
    "LoRA on the embedding, checkpointed, amp": {
        "method": "lora", "peft": EMBEDDING, "precision": "amp", "activation_checkpointing": True,
    },
    "LoRA on the embedding of nf4": {"method": "lora", "peft": EMBEDDING, **QUANTIZED},
    "LoRA on GPT-2's embeddings": {
        "model": GPT2, "method": "lora", "peft": {"target_modules": ["wte", "wpe", "c_fc"], "lora_dropout": 0.1},
    },
    "LoRA on Conv1D": {"model": GPT2, "method": "lora", "peft": {"target_modules": ["c_attn", "c_proj"]}},
    "DoRA on Conv1D": {
        "model": GPT2, "method": "lora", "precision": "amp", "peft": {**DORA, "target_modules": ["c_attn", "c_fc"]},
    },
}  # fmt: skip


EVERY_COURSE: dict[str, dict[str, Any]] = {
    f"{name}, {course}": {"method": "lora", "peft": peft, **keys}
    for name, peft in (("DoRA", DORA), ("LoRA on the embedding", EMBEDDING))
    for course, keys in COURSES.items()
}


COMMON = Agreement(CASES)
EVERY = Agreement(EVERY_COURSE)


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY.cases)
def test_walk_equals_trace_on_every_course(name: str) -> None:
    EVERY.check(name)
