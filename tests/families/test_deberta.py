"""DeBERTa and DeBERTa v2 against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "vocab_size": 97,
    "max_position_embeddings": 40,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
SMALL: list[dict[str, Any]] = [
    {"model_type": "deberta-v2", **SIZES},
    {"model_type": "deberta-v2", **SIZES, **RELATIVE, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    {
        "model_type": "deberta-v2",
        **SIZES,
        **RELATIVE,
        "position_buckets": 8,
        "embedding_size": 12,
        "type_vocab_size": 2,
    },
    {"model_type": "deberta-v2", **SIZES, **RELATIVE, "conv_kernel_size": 3, "conv_act": "gelu"},
    {"model_type": "deberta-v2", **SIZES, "relative_attention": True, "pos_att_type": "p2c"},
    {"model_type": "deberta-v2", **SIZES, "tie_word_embeddings": False},
    {"model_type": "deberta-v2", **SIZES, "legacy": False},
    {"model_type": "deberta", **SIZES},
    {"model_type": "deberta", **SIZES, **RELATIVE, "max_relative_positions": 12, "talking_head": True},
    {"model_type": "deberta", **SIZES, **RELATIVE, "position_biased_input": False},
]
SMALL_CASES = [(config, task) for config in SMALL for task in family_of(config["model_type"]).tasks]


@pytest.mark.parametrize(("card_id", "task"), cases_of("deberta", "deberta-v2"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize(("config", "task"), SMALL_CASES)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("task", [Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], task: Task, checkpointing: str | None) -> None:
    unused = r"predictions\.bias$" if not config.get("tie_word_embeddings", True) else "$."
    assert_balanced(config, Head(task), StepSettings(batch=2, sequence=16, checkpointing=checkpointing), unused=unused)
