"""Recipes at the edge of what a trace builds: quantized storage, modules left out of it, optimizers that Trainer lacks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from memplan.compare import Comparison, compare
from memplan.errors import UnavailableError
from memplan.recipe import Recipe
from memplan.trace import optimizers

MODEL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1001,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "modules left in 16 bits": {"method": "qlora", "llm_int8_skip_modules": ["lm_head", "q_proj"]},
    "a layer left out of 8 bits": {"method": "lora", "load_in_8bit": True, "llm_int8_skip_modules": ["model.layers.1"]},
    "nothing left out": {"method": "lora", "load_in_8bit": True, "llm_int8_skip_modules": []},
    "packed in bfloat16": {"method": "qlora", "bnb_4bit_quant_storage": "bfloat16"},
    "packed in float32": {"method": "qlora", "bnb_4bit_quant_storage": "float32"},
    "packed, not prepared": {
        "method": "qlora", "bnb_4bit_quant_storage": "bfloat16", "prepare_model_for_kbit_training": False,
    },
    "Muon": {"optim": "muon"},
    "Muon on 16 bits": {"optim": "muon", "dtype": "bfloat16"},
    "Muon on adapters": {"optim": "muon", "method": "lora", "peft": {"target_modules": "all-linear"}},
    "Muon, accumulated": {"optim": "muon", "gradient_accumulation_steps": 2, "optim_args": {"nesterov": False}},
    "schedule-free AdamW": {"optim": "schedule_free_adamw"},
    "schedule-free SGD": {"optim": "schedule_free_sgd", "dtype": "bfloat16", "method": "lora"},
}  # fmt: skip


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    recipes = [Recipe(model=MODEL, micro_batch_size=2, sequence_length=64, **keys) for keys in CASES.values()]
    return dict(zip(CASES, compare(recipes), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_trace_agrees_with_the_walk(comparisons: dict[str, Comparison], name: str) -> None:
    comparison = comparisons[name]
    if name.startswith("schedule-free") and find_spec("schedulefree") is None:
        assert "needs the package schedulefree" in comparison.refusal
        pytest.skip("schedulefree is not installed")
    assert comparison.refusal == ""
    assert comparison.is_equal, [phase for phase in comparison.phases if not phase.is_equal]


@pytest.mark.parametrize(
    "optim", ["adamw_8bit", "lion_8bit", "lion_32bit", "ademamix", "ademamix_8bit", "rmsprop_bnb", "paged_adamw_8bit"]
)
def test_an_optimizer_of_bitsandbytes_asks_for_it(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="needs the package bitsandbytes"):
        optimizers._check_installed(optim)
    for other in ("adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"):
        optimizers._check_installed(other)
