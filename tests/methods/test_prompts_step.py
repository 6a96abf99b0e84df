"""The step under prompt methods against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.methods.agreement import COURSES, DECODER, GPT2, QUANTIZED, Agreement

GEMMA = {"model_type": "gemma", **DECODER}
METHODS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 11},
    "p_tuning": {"num_virtual_tokens": 11, "encoder_hidden_size": 100},
}
EXTRA: dict[str, dict[str, Any]] = {
    "nf4": QUANTIZED,
    "one row": {"micro_batch_size": 1, "sequence_length": 70, "keep_outputs": True},
    "gpt2": {"model": GPT2},
    "8-bit AdamW, whose embeddings stay in 32 bits": {"optim": "adamw_bnb_8bit"},
    "gemma": {"model": GEMMA, "precision": "amp"},
}
SAMPLED = ("bf16", "checkpointed, amp, eager", "padded, accumulated")


def cases(courses: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    chosen = {**{name: COURSES[name] for name in courses}, **EXTRA}
    return {
        f"{method}, {name}": {"method": method, "peft": peft, **keys}
        for method, peft in METHODS.items()
        for name, keys in chosen.items()
    }


COMMON = Agreement(cases(SAMPLED))
EVERY = Agreement(cases(tuple(COURSES)))


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY.cases)
def test_walk_equals_trace_on_every_course(name: str) -> None:
    EVERY.check(name)
