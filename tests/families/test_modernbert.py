"""ModernBERT against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {"model_type": "modernbert", "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20}
SMALL: list[dict[str, Any]] = [
    {**SIZES, "num_hidden_layers": 4, "vocab_size": 97, "pad_token_id": 0, "local_attention": 8},
    {**SIZES, "num_hidden_layers": 2, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "vocab_size": 50300},
    {**SIZES, "num_hidden_layers": 1, "classifier_bias": True, "decoder_bias": False, "tie_word_embeddings": False},
    {**SIZES, "num_hidden_layers": 2, "classifier_pooling": "mean", "attention_dropout": 0.1},
]
SMALL_CASES = [(config, task) for config in SMALL for task in family_of("modernbert").tasks]


@pytest.mark.parametrize(("card_id", "task"), cases_of("modernbert"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize(("config", "task"), SMALL_CASES)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize(("config", "task"), [case for case in SMALL_CASES if case[1] is not Task.FEATURE_EXTRACTION])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(
    config: dict[str, Any], task: Task, attention: str, checkpointing: str | None
) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(task), settings)
