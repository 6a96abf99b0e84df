"""Longest sequences, against real models: at the limit they run, one token beyond it they fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from memplan.families.positions import max_positions
from memplan.model_config.normalise import normalise_config

SMALL: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "deberta-v2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "opt": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}  # fmt: skip


def config_of(model_type: str) -> dict[str, Any]:
    key = "n_positions" if model_type in ("gpt2", "gptj") else "max_position_embeddings"
    return {"model_type": model_type, "vocab_size": 50, "pad_token_id": 1, key: 24, **SMALL[model_type]}


@pytest.mark.parametrize("model_type", SMALL)
def test_the_limit_is_where_the_real_model_fails(model_type: str) -> None:
    config = config_of(model_type)
    limit = max_positions(normalise_config(config))
    assert limit is not None
    model = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    tokens = torch.full((1, limit + 1), 3)
    with torch.no_grad():
        model(input_ids=tokens[:, :limit])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=tokens)


@pytest.mark.parametrize("model_type", ["llama", "t5", "bloom"])
def test_other_positions_have_no_limit(model_type: str) -> None:
    assert max_positions({"model_type": model_type, "max_position_embeddings": 24}) is None
