"""T5 and mT5 against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import InvalidValueError
from memplan.families import Head, check_task, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {"d_model": 24, "d_kv": 5, "d_ff": 30, "num_heads": 3, "vocab_size": 97, "classifier_dropout": 0.1}
SMALL: list[dict[str, Any]] = [
    {"model_type": "t5", **SIZES, "num_layers": 2, "feed_forward_proj": "relu"},
    {"model_type": "t5", **SIZES, "num_layers": 1, "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu"},
    {"model_type": "t5", **SIZES, "num_layers": 2, "relative_attention_num_buckets": 8, "tie_word_embeddings": False},
    {"model_type": "mt5", **SIZES, "num_layers": 2, "tie_word_embeddings": False},
    {"model_type": "mt5", **SIZES, "num_layers": 3, "num_decoder_layers": 2},
]
SMALL_CASES = [(c, task) for c in SMALL for task in family_of("t5").tasks_of(c["model_type"])]


@pytest.mark.parametrize(("card_id", "task"), cases_of("t5", "mt5"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize(("config", "task"), SMALL_CASES)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


def test_a_head_that_mt5_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="mt5 models have: seq2seq-lm"):
        check_task("mt5", Task.PRE_TRAINING)


@pytest.mark.parametrize(("config", "task"), [case for case in SMALL_CASES if case[1] is not Task.FEATURE_EXTRACTION])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
@pytest.mark.parametrize("target", [0, 7])
def test_every_parameter_gets_its_gradient(
    config: dict[str, Any], task: Task, attention: str, checkpointing: str | None, target: int
) -> None:
    settings = StepSettings(
        batch=2, sequence=16, target_sequence=target, attn_implementation=attention, checkpointing=checkpointing
    )
    assert_balanced(config, Head(task), settings)
