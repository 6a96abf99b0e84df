"""The step under methods that wrap layers, against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.methods.agreement import COURSES, GPT2, LLAMA, QUANTIZED, QWEN2, Agreement

# Adapter configs, each with what of `EXTRA` it can stand on.
METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "adalora": ({"total_step": 100, "lora_dropout": 0.1}, ("nf4", "qwen2", "gpt2")),
    "boft": ({}, ("nf4", "qwen2")),
    "beft": ({"target_modules": ["v_proj", "q_proj"]}, ("nf4", "qwen2")),
    "fourierft": ({"n_frequency": 333}, ("nf4", "gpt2")),
    "ia3": ({}, ("nf4", "gpt2")),
    "loha": ({}, ("qwen2", "all linears")),
    "lokr": ({"decompose_both": True, "r": 4}, ("qwen2",)),
    "ln_tuning": ({}, ("nf4", "gpt2")),
    "oft": ({}, ("nf4", "qwen2")),
    "trainable_tokens": ({"token_indices": [1, 2, 3]}, ("nf4", "tied", "gpt2")),
    "miss": ({"r": 7, "miss_dropout": 0.1}, ("nf4", "qwen2")),
    "vera": ({"vera_dropout": 0.1, "r": 32}, ("nf4", "gpt2")),
}
EXTRA: dict[str, dict[str, Any]] = {
    "nf4": QUANTIZED,
    "gpt2": {"model": GPT2, "precision": "amp"},
    "tied": {"model": {**LLAMA, "tie_word_embeddings": True}, "activation_checkpointing": True},
    "qwen2": {"model": QWEN2, "precision": "amp"},
    "all linears": {"target_modules": "all-linear"},
}
SAMPLED = ("bf16", "checkpointed, amp, eager")


def cases(courses: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for method, (peft, extra) in METHODS.items():
        for name in courses:
            found[f"{method}, {name}"] = {"method": method, "peft": peft, **COURSES[name]}
        for name in extra:
            found[f"{method}, {name}"] = {"method": method, "peft": peft, **EXTRA[name]}
    return found


COMMON = Agreement(cases(SAMPLED))
EVERY = Agreement(cases(tuple(COURSES)))


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY.cases)
def test_walk_equals_trace_on_every_course(name: str) -> None:
    EVERY.check(name)
