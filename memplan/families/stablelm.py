"""StableLM-2 and StableLM-3B: LayerNorm, partly rotated heads, optionally LayerNorm per head and parallel blocks.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, R rotary size.

Source: transformers 5.23 models/stablelm/modeling_stablelm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Family, Head
from memplan.families.decoder import TEXT_TASKS, Dims, Position, decoder, dims, gated_mlp, with_head
from memplan.step.builder import Builder
from memplan.step.norms import layer_norm_per_head
from memplan.step.split import concatenate, parts
from memplan.step.tensor import Tensor


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias = config["use_qkv_bias"]
    query = t.linear("q_proj", x, d.heads * d.head_size, bias=bias)
    key = t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias)
    value = t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias)
    query = t.split_heads(query, d.heads, d.head_size)
    key = t.split_heads(key, d.kv_heads, d.head_size)
    value = t.split_heads(value, d.kv_heads, d.head_size)
    if config["qk_layernorm"]:
        query = t.call("q_layernorm", layer_norm_per_head, query)
        key = t.call("k_layernorm", layer_norm_per_head, key)
    # Its variables keep the parts, and the projections that they are views of, until the block returns.
    query_rotated, query_passed = parts(t, query, d.rotary_size)
    key_rotated, key_passed = parts(t, key, d.rotary_size)
    query_rotated, key_rotated = t.apply_rotary_pos_emb(query_rotated, key_rotated, at.cos, at.sin)
    query = concatenate(t, (query_rotated, query_passed), query.shape)
    key = concatenate(t, (key_rotated, key_passed), key.shape)
    key, value = t.cache_key_values(key, value)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.layer_norm("input_layernorm", x)
    attention_output = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    if config["use_parallel_residual"]:
        mlp_output = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
        mlp_output = t.dropout(mlp_output, config["hidden_dropout"])
        return residual + attention_output + mlp_output
    residual = residual + attention_output
    mlp_output = t.call("mlp", lambda t, h: gated_mlp(t, h, d), t.layer_norm("post_attention_layernorm", residual))
    mlp_output = t.dropout(mlp_output, config["hidden_dropout"])
    return residual + mlp_output


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t, config, lambda t, h, at: decoder_layer(t, h, d, config, at), lambda t, name, h: t.layer_norm(name, h)
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"stablelm"}))
