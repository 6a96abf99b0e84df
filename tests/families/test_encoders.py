"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SMALL: list[dict[str, Any]] = [
    {
        "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 50, "vocab_size": 97, "max_position_embeddings": 31, "type_vocab_size": 3,
    },
    {
        "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "intermediate_size": 50, "vocab_size": 97, "tie_word_embeddings": False,
    },
    {
        "model_type": "roberta", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 50, "vocab_size": 97, "classifier_dropout": 0.3, "is_decoder": True,
    },
    {
        "model_type": "roberta", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "intermediate_size": 50, "vocab_size": 97, "tie_word_embeddings": False,
    },
    {
        "model_type": "xlm-roberta", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "intermediate_size": 50, "vocab_size": 97,
    },
    {"model_type": "distilbert", "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 50, "vocab_size": 97},
    {
        "model_type": "distilbert", "dim": 24, "n_layers": 1, "n_heads": 3, "hidden_dim": 50,
        "vocab_size": 97, "tie_word_embeddings": False,
    },
]  # fmt: skip
SMALL_CASES = [(config, task) for config in SMALL for task in family_of(config["model_type"]).tasks]


@pytest.mark.parametrize(("card_id", "task"), cases_of("bert", "roberta", "xlm-roberta", "distilbert"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize(("config", "task"), SMALL_CASES)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize(("config", "task"), [case for case in SMALL_CASES if case[1] is not Task.FEATURE_EXTRACTION])
@pytest.mark.parametrize(
    "settings",
    [
        StepSettings(batch=2, sequence=16),
        StepSettings(batch=2, sequence=16, attn_implementation="eager", padding=True),
        StepSettings(batch=2, sequence=16, padding=True, checkpointing="non-reentrant"),
    ],
    ids=["sdpa", "eager", "checkpointed"],
)
def test_every_parameter_gets_its_gradient(config: dict[str, Any], task: Task, settings: StepSettings) -> None:
    # With tied weights the prediction head's own bias is the decoder's; without, nothing reads it.
    unused = r"(predictions|lm_head)\.bias$" if not config.get("tie_word_embeddings", True) else "$."
    assert_balanced(config, Head(task), settings, unused=unused)
