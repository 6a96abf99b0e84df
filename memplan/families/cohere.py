"""Command R: attention and MLP side by side on one LayerNorm without bias, interleaved rotary embedding in float32.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size.

Source: transformers 5.23 models/cohere/modeling_cohere.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.decoder import Dims, Position, decoder, dims, gated_mlp, with_head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.norms import layer_norm_in_float
from memplan.step.tensor import Tensor


def norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`CohereLayerNorm`."""
    return layer_norm_in_float(t, name, x, x.shape[-1:], class_name="CohereLayerNorm")


def apply_rotary_pos_emb(t: Builder, query: Tensor, key: Tensor, at: Position) -> tuple[Tensor, Tensor]:
    """Cast to float32, rotated, cast back."""
    query_float, key_float = ops.to(t, query, DType.FLOAT32), ops.to(t, key, DType.FLOAT32)
    query_embed, key_embed = t.apply_rotary_pos_emb(query_float, key_float, at.cos, at.sin)
    return ops.to(t, query_embed, query.dtype), ops.to(t, key_embed, key.dtype)


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias = config["attention_bias"]
    query = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=bias), d.heads, d.head_size)
    key = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    if config["use_qk_norm"]:
        # Normed as [B, S, A, D], with a weight for every head.
        query = layer_norm_in_float(t, "q_norm", query, (d.heads, d.head_size), class_name="CohereLayerNorm")
        key = layer_norm_in_float(t, "k_norm", key, (d.kv_heads, d.head_size), class_name="CohereLayerNorm")
    query, key = apply_rotary_pos_emb(t, query, key, at)
    key, value = t.cache_key_values(key, value)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=bias)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = norm(t, "input_layernorm", x)
    attention_output = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    mlp_output = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    return residual + attention_output + mlp_output


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(t, config, lambda t, h, at: decoder_layer(t, h, d, config, at), norm)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head, finish=ops.scale)


FAMILY = Family(forward, "model", (Task.CAUSAL_LM, Task.FEATURE_EXTRACTION), walked=frozenset({"cohere"}))
