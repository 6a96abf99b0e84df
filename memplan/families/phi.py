"""Phi-1, Phi-1.5 and Phi-2: attention and MLP side by side on one LayerNorm, biases everywhere, partly rotated heads.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, R rotary size.

Source: transformers 5.23 models/phi/modeling_phi.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Family, Head
from memplan.families.decoder import TEXT_TASKS, Dims, Position, decoder, dims, with_head
from memplan.step.builder import Builder
from memplan.step.split import concatenate, parts
from memplan.step.tensor import Tensor


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    query = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=True), d.heads, d.head_size)
    key = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=True), d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=True), d.kv_heads, d.head_size)
    if config["qk_layernorm"]:
        query = t.layer_norm("q_layernorm", query)
        key = t.layer_norm("k_layernorm", key)
    # Its variables keep the parts, and the projections that they are views of, until the block returns.
    query_rotated, query_passed = parts(t, query, d.rotary_size)
    key_rotated, key_passed = parts(t, key, d.rotary_size)
    query_rotated, key_rotated = t.apply_rotary_pos_emb(query_rotated, key_rotated, at.cos, at.sin)
    query = concatenate(t, (query_rotated, query_passed), query.shape)
    key = concatenate(t, (key_rotated, key_passed), key.shape)
    key, value = t.cache_key_values(key, value)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("dense", out, d.hidden, bias=True)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = t.linear("fc1", x, d.intermediate, bias=True)
    x = t.activation(d.activation, x)
    return t.linear("fc2", x, d.hidden, bias=True)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    dropout = config["resid_pdrop"]
    residual = x
    x = t.layer_norm("input_layernorm", x)
    attention_output = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    attention_output = t.dropout(attention_output, dropout)
    feed_forward = t.dropout(t.call("mlp", lambda t, h: mlp(t, h, d), x), dropout)
    return attention_output + feed_forward + residual


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t,
        config,
        lambda t, h, at: decoder_layer(t, h, d, config, at),
        lambda t, name, h: t.layer_norm(name, h),
        dropout=config["embd_pdrop"],
        final_norm="final_layernorm",
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head, bias=True)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"phi"}))
