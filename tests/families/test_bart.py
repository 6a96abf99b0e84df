"""BART and mBART against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {
    "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 30, "decoder_ffn_dim": 40, "vocab_size": 97, "max_position_embeddings": 30,
}  # fmt: skip
SMALL: list[dict[str, Any]] = [
    {"model_type": "bart", **SIZES, "scale_embedding": True},
    {"model_type": "bart", **SIZES, "tie_word_embeddings": False, "classifier_dropout": 0.2},
    {"model_type": "mbart", **SIZES},
    {"model_type": "mbart", **SIZES, "tie_word_embeddings": False},
]
SMALL_CASES = [(c, task) for c in SMALL for task in family_of("bart").tasks_of(c["model_type"])]


@pytest.mark.parametrize(("card_id", "task"), cases_of("bart", "mbart"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize(("config", "task"), SMALL_CASES)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


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
    # The decoder alone does not run its cross-attention; untied, nothing looks anything up in `shared`.
    unused = (
        r"encoder_attn" if task is Task.CAUSAL_LM else r"$." if config.get("tie_word_embeddings", True) else r"shared"
    )
    assert_balanced(config, Head(task), settings, unused=unused)
