"""Whisper against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

SIZES = {
    "model_type": "whisper", "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 30, "decoder_ffn_dim": 40, "vocab_size": 97, "num_mel_bins": 7,
    "max_source_positions": 20, "max_target_positions": 30, "pad_token_id": 0,
}  # fmt: skip
SMALL: list[dict[str, Any]] = [SIZES, {**SIZES, "tie_word_embeddings": False}]
TASKS = (Task.SPEECH_SEQ2SEQ, Task.FEATURE_EXTRACTION)


@pytest.mark.parametrize(("card_id", "task"), cases_of("whisper"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("task", TASKS)
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], attention: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.SPEECH_SEQ2SEQ), settings)
