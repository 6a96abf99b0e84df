"""Llama and the decoders around it against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.families import Head, describe
from memplan.model_config import normalise_config
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced, record_config

MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3", "olmo", "olmo2", "stablelm", "starcoder2",
    "phi", "cohere", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip


def small(model_type: str, **keys: Any) -> dict[str, Any]:
    """Two layers with sizes that no two dimensions share, and the keys of the case."""
    sizes = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 40, "vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    return {"model_type": model_type, **sizes, **keys}


SMALL = [
    small("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    small("llama", head_dim=20, num_key_value_heads=1),
    small("mistral", head_dim=16, sliding_window=8),
    small("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, tie_word_embeddings=True),
    small("qwen3", head_dim=16, attention_bias=True, num_key_value_heads=4),
    small("smollm3", attention_bias=True, mlp_bias=True, no_rope_layer_interval=2, tie_word_embeddings=False),
    small("granite", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    small("phi3", partial_rotary_factor=0.5, tie_word_embeddings=True, resid_pdrop=0.1, sliding_window=8),
    small("phi3"),
    small("olmo", clip_qkv=3.0, attention_bias=True, tie_word_embeddings=True),
    small("olmo2", attention_bias=True, num_key_value_heads=4),
    small("stablelm", qk_layernorm=True, use_parallel_residual=True, use_qkv_bias=True, hidden_dropout=0.2),
    small("stablelm", partial_rotary_factor=0.5, tie_word_embeddings=True),
    small("starcoder2", use_bias=False, residual_dropout=0.1, embedding_dropout=0.1, tie_word_embeddings=False),
    small("phi", qk_layernorm=True, resid_pdrop=0.1, embd_pdrop=0.1, tie_word_embeddings=True),
    small("cohere", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False),
    small("gemma", head_dim=16, num_key_value_heads=1, attention_bias=True),
    small("gemma2", head_dim=16, sliding_window=8, tie_word_embeddings=False),
    small("gemma3_text", head_dim=16, sliding_window=8, sliding_window_pattern=2, final_logit_softcapping=20.0),
]


def name_of(config: dict[str, Any]) -> str:
    return str(config["model_type"])


@pytest.mark.parametrize(("card_id", "task"), cases_of(*MODEL_TYPES))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize("config", SMALL, ids=name_of)
@pytest.mark.parametrize("task", [Task.CAUSAL_LM, Task.FEATURE_EXTRACTION])
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL, ids=name_of)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], attention: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.CAUSAL_LM), settings)


@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_heads_get_their_gradients_under_padding_and_autocast(config: dict[str, Any]) -> None:
    settings = StepSettings(batch=2, sequence=16, padding=True, autocast=DType.FLOAT16)
    assert_balanced(config, Head(Task.CAUSAL_LM), settings)


@pytest.mark.parametrize("model_type", ["granite", "cohere"])
def test_heads_that_the_library_lacks_are_refused(model_type: str) -> None:
    with pytest.raises(InvalidValueError, match="causal-lm, feature-extraction"):
        describe(normalise_config(small(model_type)), Head(Task.SEQUENCE_CLASSIFICATION))


def test_a_window_needs_a_mask_only_when_the_sequence_reaches_it() -> None:
    config = small("mistral", sliding_window=16)
    masks = {
        length: [
            info
            for info in record_config(config, Head(Task.CAUSAL_LM), StepSettings(batch=2, sequence=length)).infos
            if info.dtype is DType.BOOL and info.shape[-2:] == (length, length)
        ]
        for length in (15, 16)
    }
    assert masks[15] == []
    assert masks[16] != []


def test_layers_of_one_kind_are_walked_once() -> None:
    config = small("gemma3_text", head_dim=16, num_hidden_layers=12, sliding_window=8)
    recording = record_config(config, Head(Task.CAUSAL_LM), StepSettings(batch=1, sequence=16))
    counts = {segment.layer: segment.count for segment in recording.segments if "layers" in segment.layer}
    assert sum(counts.values()) == 12
    assert len(counts) < 12
