"""GPT-2, GPT-BigCode, GPT-NeoX, GPT-J, OPT, Bloom, Falcon against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced

MODEL_TYPES = ("gpt2", "gpt_bigcode", "gpt_neox", "gptj", "opt", "bloom", "falcon")

SMALL: list[dict[str, Any]] = [
    {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 97, "n_positions": 31, "n_inner": 50},
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 1, "tie_word_embeddings": False},
    {"model_type": "gpt_bigcode", "n_embd": 24, "n_layer": 2, "n_head": 3, "multi_query": False, "n_inner": 40},
    {"model_type": "gpt_bigcode", "n_embd": 24, "n_layer": 1, "n_head": 2, "multi_query": True, "n_positions": 7},
    {
        "model_type": "gpt_neox", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 30, "attention_bias": False, "tie_word_embeddings": True,
        "use_parallel_residual": False, "vocab_size": 77,
    },
    {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_inner": 20, "vocab_size": 51},
    {"model_type": "gptj", "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 2, "tie_word_embeddings": True},
    {
        "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 20,
        "word_embed_proj_dim": 12, "enable_bias": False, "vocab_size": 61, "max_position_embeddings": 19,
    },
    {
        "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 20,
        "word_embed_proj_dim": 32, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False,
    },
    {
        "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "word_embed_proj_dim": 32, "do_layer_norm_before": True, "_remove_final_layer_norm": True,
    },
    {"model_type": "bloom", "hidden_size": 24, "n_layer": 2, "n_head": 3, "vocab_size": 83},
    {"model_type": "bloom", "hidden_size": 24, "n_layer": 1, "n_head": 3, "tie_word_embeddings": False},
    {
        "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
        "multi_query": False, "parallel_attn": False, "bias": True, "vocab_size": 71,
    },
    {
        "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 48,
    },
    {
        "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False,
    },
]  # fmt: skip


@pytest.mark.parametrize(("card_id", "task"), cases_of(*MODEL_TYPES))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config["model_type"])
@pytest.mark.parametrize("task", [Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION])
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config["model_type"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], attention: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.CAUSAL_LM), settings)
