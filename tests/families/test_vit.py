"""ViT against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
SMALL: list[dict[str, Any]] = [
    {**SIZES, "intermediate_size": 50, "image_size": 32, "patch_size": 8},
    {**SIZES, "intermediate_size": 50, "image_size": 33, "patch_size": 8, "num_channels": 1, "qkv_bias": False},
    {**SIZES, "intermediate_size": 50, "image_size": 32, "patch_size": 16, "pooler_output_size": 10},
]


@pytest.mark.parametrize(("card_id", "task"), cases_of("vit"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("task", [Task.IMAGE_CLASSIFICATION, Task.FEATURE_EXTRACTION])
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], attention: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.IMAGE_CLASSIFICATION), settings)
