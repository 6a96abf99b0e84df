"""Phi-3, Phi-3.5 and Phi-4 (mini and 14B): Llama with fused q/k/v and gate/up projections.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, R rotary size.

Source: transformers 5.23 models/phi3/modeling_phi3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Family, Head
from memplan.families.decoder import TEXT_TASKS, Dims, Position, decoder, dims, with_head
from memplan.step.builder import Builder
from memplan.step.split import concatenate, narrow, split
from memplan.step.tensor import Tensor


def apply_rotary_pos_emb(t: Builder, x: Tensor, d: Dims, at: Position) -> Tensor:
    """Rotate the first R elements of each head and join the rest, which may be empty: x [B, A, S, D]."""
    rest = d.head_size - d.rotary_size
    rotated = narrow(t, x, (*x.shape[:-1], d.rotary_size)) if rest else t.view(x, x.shape, by_token=x.by_token)
    passed = narrow(t, x, (*x.shape[:-1], rest))
    return concatenate(t, (t.rotary(rotated, at.cos, at.sin), passed), x.shape)


def attention(t: Builder, x: Tensor, d: Dims, at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    query_width, kv_width = d.heads * d.head_size, d.kv_heads * d.head_size
    qkv = t.linear("qkv_proj", x, query_width + 2 * kv_width)
    query = narrow(t, qkv, (*x.shape[:-1], query_width))
    key = narrow(t, qkv, (*x.shape[:-1], kv_width))
    value = narrow(t, qkv, (*x.shape[:-1], kv_width))
    query = t.split_heads(query, d.heads, d.head_size)
    key = t.split_heads(key, d.kv_heads, d.head_size)
    value = t.split_heads(value, d.kv_heads, d.head_size)
    query, key = apply_rotary_pos_emb(t, query, d, at), apply_rotary_pos_emb(t, key, d, at)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], query_width))
    return t.linear("o_proj", out, d.hidden)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """up * act(gate) on the halves of one projection: x [B, S, H] to [B, S, H]."""
    up = t.linear("gate_up_proj", x, 2 * d.intermediate)
    gate, up = split(t, up, (d.intermediate, d.intermediate))
    up = up * t.activation(d.activation, gate)
    return t.linear("down_proj", up, d.hidden)


def decoder_layer(t: Builder, x: Tensor, d: Dims, at: Position, dropout: float) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = rms_norm(t, "input_layernorm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, at), x)
    x = residual + t.dropout(x, dropout)
    residual = x
    x = rms_norm(t, "post_attention_layernorm", x)
    x = t.call("mlp", lambda t, h: mlp(t, h, d), x)
    return residual + t.dropout(x, dropout)


def rms_norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`Phi3RMSNorm`."""
    return t.rms_norm(name, x, class_name="Phi3RMSNorm")


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(t, config, lambda t, h, at: decoder_layer(t, h, d, at, config["resid_pdrop"]), rms_norm)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"phi3"}))
