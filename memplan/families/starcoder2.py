"""StarCoder2: LayerNorm, biases everywhere, a plain MLP, a sliding window.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size.

Source: transformers 5.23 models/starcoder2/modeling_starcoder2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Family, Head
from memplan.families.decoder import TEXT_TASKS, Dims, Position, decoder, dims, with_head
from memplan.step.builder import Builder
from memplan.step.tensor import Tensor


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias = config["use_bias"]
    query = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=bias), d.heads, d.head_size)
    key = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    query, key = t.apply_rotary_pos_emb(query, key, at.cos, at.sin)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.dropout(t.linear("o_proj", out, d.hidden, bias=bias), config["residual_dropout"])


def mlp(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any]) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias = config["use_bias"]
    x = t.linear("c_fc", x, d.intermediate, bias=bias)
    x = t.activation(d.activation, x)
    x = t.linear("c_proj", x, d.hidden, bias=bias)
    return t.dropout(x, config["residual_dropout"])


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.layer_norm("input_layernorm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = t.layer_norm("post_attention_layernorm", x)
    x = t.call("mlp", lambda t, h: mlp(t, h, d, config), x)
    return residual + x


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t,
        config,
        lambda t, h, at: decoder_layer(t, h, d, config, at),
        lambda t, name, h: t.layer_norm(name, h),
        dropout=config["embedding_dropout"],
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"starcoder2"}))
