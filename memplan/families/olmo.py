"""OLMo and OLMo-2, which rotate in float32: OLMo's norms have no weights, OLMo-2 norms q, k and what its blocks return.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size.

Source: transformers 5.23 models/olmo/modeling_olmo.py, models/olmo2/modeling_olmo2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.decoder import (
    TEXT_TASKS,
    Dims,
    Position,
    decoder,
    dims,
    gated_mlp,
    rotary_embedding,
    with_head,
)
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.norms import layer_norm_without_weights
from memplan.step.tensor import Tensor


def norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`Olmo2RMSNorm`: the weight multiplies in float32."""
    return t.rms_norm(name, x, class_name="Olmo2RMSNorm", weight_in_float=True)


def apply_rotary_pos_emb(t: Builder, query: Tensor, key: Tensor, at: Position) -> tuple[Tensor, Tensor]:
    """Rotated with a float32 table, then cast back."""
    query_embed, key_embed = t.apply_rotary_pos_emb(query, key, at.cos, at.sin)
    return ops.to(t, query_embed, query.dtype), ops.to(t, key_embed, key.dtype)


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]; OLMo-2 norms q and k over all heads together."""
    bias = config["attention_bias"]
    query = t.linear("q_proj", x, d.heads * d.head_size, bias=bias)
    if config["model_type"] == "olmo2":
        query = norm(t, "q_norm", query)
    key = t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias)
    if config["model_type"] == "olmo2":
        key = norm(t, "k_norm", key)
    value = t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias)
    if config.get("clip_qkv") is not None:
        query, key, value = (ops.unary(t, "clamp", part, save="input") for part in (query, key, value))
    query = t.split_heads(query, d.heads, d.head_size)
    key = t.split_heads(key, d.kv_heads, d.head_size)
    value = t.split_heads(value, d.kv_heads, d.head_size)
    query, key = apply_rotary_pos_emb(t, query, key, at)
    key, value = t.cache_key_values(key, value)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=bias)


def olmo_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer of OLMo: x [B, S, H] to [B, S, H]."""
    residual = x
    x = layer_norm_without_weights(t, x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = layer_norm_without_weights(t, x)
    x = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    return residual + x


def olmo2_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer of OLMo-2, which norms after its blocks: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = norm(t, "post_attention_layernorm", x)
    x = residual + x
    residual = x
    x = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    x = norm(t, "post_feedforward_layernorm", x)
    return residual + x


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    olmo2 = config["model_type"] == "olmo2"
    layer = olmo2_layer if olmo2 else olmo_layer
    return decoder(
        t,
        config,
        lambda t, h, at: layer(t, h, d, config, at),
        norm if olmo2 else lambda t, name, h: layer_norm_without_weights(t, h),
        tables=lambda t, _: [rotary_embedding(t, DType.FLOAT32, d.rotary_size)] * d.layers,
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(
    forward,
    "model",
    tuple(task for task in TEXT_TASKS if task is not Task.TOKEN_CLASSIFICATION),
    walked=frozenset({"olmo", "olmo2"}),
)
