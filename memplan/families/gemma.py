"""Gemma, Gemma 2 and the text models of Gemma 3: scaled embeddings, float32 norms with weight 1 + w, soft caps.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, V vocabulary.

Source: transformers 5.23 models/{gemma,gemma2,gemma3}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memplan.dtypes import DType, parse_dtype
from memplan.families import Family, Head
from memplan.families.decoder import (
    TEXT_TASKS,
    Dims,
    Position,
    decoder_layers,
    dims,
    embed_tokens,
    gated_mlp,
    rotary_embedding,
    with_head,
)
from memplan.recipe import Task
from memplan.step.builder import Builder
from memplan.step.eager_attention import soft_cap, softcapped_attention
from memplan.step.norms import gemma_rms_norm
from memplan.step.tensor import Tensor

_CLASS_PREFIX = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}


def norm_of(config: Mapping[str, Any]) -> Callable[[Builder, str, Tensor], Tensor]:
    """The norm class of a config's model type."""
    class_name = f"{_CLASS_PREFIX[config['model_type']]}RMSNorm"
    return lambda t, name, x: gemma_rms_norm(t, name, x, class_name=class_name)


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias, norm = config["attention_bias"], norm_of(config)
    query = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=bias), d.heads, d.head_size)
    key = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    if config["model_type"] == "gemma3_text":
        query = norm(t, "q_norm", query)
        key = norm(t, "k_norm", key)
    query, key = t.apply_rotary_pos_emb(query, key, at.cos, at.sin)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    if config["model_type"] == "gemma2" and t.settings.attn_implementation != "flash_attention_2":
        out = softcapped_attention(t, query, key, value, at.mask, d.attention_dropout)
    else:
        out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=bias)


def gemma_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer of Gemma: x [B, S, H] to [B, S, H]."""
    norm = norm_of(config)
    residual = x
    x = norm(t, "input_layernorm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = norm(t, "post_attention_layernorm", x)
    x = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    return residual + x


def gemma2_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer of Gemma 2 and 3, which norm before and after each block: x [B, S, H] to [B, S, H]."""
    norm = norm_of(config)
    residual = x
    x = norm(t, "input_layernorm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = norm(t, "post_attention_layernorm", x)
    x = residual + x
    residual = x
    x = norm(t, "pre_feedforward_layernorm", x)
    x = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    x = norm(t, "post_feedforward_layernorm", x)
    return residual + x


def embeddings(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """`embed_tokens`, multiplied by a buffer that holds the square root of H: [B, S, H]."""
    prefix = _CLASS_PREFIX[config["model_type"]]
    embedded = embed_tokens(t, config, class_name=f"{prefix}TextScaledWordEmbedding")

    def scale(t: Builder) -> Tensor:
        t.buffer("embed_scale", (), parse_dtype(config["dtype"] or "float32"))  # made in the type that is loaded
        # The buffer itself: its `.to(weight.dtype)` changes nothing.
        return t.require_input_gradient(embedded * Tensor(t, (), embedded.dtype, None))

    return t.call("embed_tokens", scale)


def model(t: Builder, config: Mapping[str, Any], inputs_embeds: Tensor) -> Tensor:
    """The decoder without embedding and head: [B, S, H] to [B, S, H]."""
    d = dims(config)
    layer = gemma_layer if config["model_type"] == "gemma" else gemma2_layer
    return decoder_layers(
        t,
        inputs_embeds,
        config,
        lambda t, h, at: layer(t, h, d, config, at),
        norm_of(config),
        tables=(lambda t, dtype: _tables(t, dtype, config)) if config["model_type"] == "gemma3_text" else None,
    )


def _tables(t: Builder, dtype: DType, config: Mapping[str, Any]) -> Sequence[tuple[Tensor, Tensor]]:
    """Gemma 3 has a rotary table for each type of layer."""
    size, types = config["head_dim"], config["layer_types"]
    tables = {name: rotary_embedding(t, dtype, size, prefix=f"{name}_") for name in sorted(set(types))}
    return [tables[name] for name in types]


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""

    def body(t: Builder) -> Tensor:
        return model(t, config, embeddings(t, config))

    capped = config.get("final_logit_softcapping") is not None
    return with_head(t, body, config, head, finish=soft_cap if capped else None)


FAMILY = Family(
    forward,
    "model",
    TEXT_TASKS,
    walked=frozenset({"gemma", "gemma2", "gemma3_text"}),
    missing={"gemma3_text": frozenset({Task.TOKEN_CLASSIFICATION})},
)
