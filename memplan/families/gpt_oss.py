"""gpt-oss: attention with sinks, sliding in every other layer, and experts with biases and a clamped gate.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size (of one expert), E experts, C experts chosen per token, N tokens (B·S), T = N·C.

Source: transformers 5.23 models/gpt_oss/modeling_gpt_oss.py. The library refuses sdpa for it (`_supports_sdpa = False`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.decoder import TEXT_TASKS, Dims, Position, decoder, dims, rotary_buffers, with_head
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.eager_attention import attention_with_sinks
from memplan.step.matmul import softmax
from memplan.step.moe import ExpertShapes, Routing, experts, top_k
from memplan.step.split import concatenate, narrow, split
from memplan.step.tensor import Tensor


def rms_norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`GptOssRMSNorm`: the weight multiplies in float32."""
    return t.rms_norm(name, x, class_name="GptOssRMSNorm", weight_in_float=True)


def half_table(t: Builder, dtype: DType, size: int) -> tuple[Tensor, Tensor]:
    """`GptOssRotaryEmbedding.forward`: cos and sin [1, S, D/2], made without gradients."""

    def forward(t: Builder) -> tuple[Tensor, Tensor]:
        rotary_buffers(t, size)
        outer, t.grad_enabled = t.grad_enabled, False
        rows = 1 if t.cache is None else t.batch
        shape = (rows, t.sequence, size // 2)
        positions = t.new((rows, t.sequence, 1), DType.FLOAT32, "_to_copy")
        frequencies = t.new(shape, DType.FLOAT32, "mul")
        del positions
        cos = ops.scale(t, t.new(shape, DType.FLOAT32, "cos"))
        sin = ops.scale(t, t.new(shape, DType.FLOAT32, "sin"))
        table = ops.to(t, cos, dtype), ops.to(t, sin, dtype)
        del frequencies, cos, sin
        t.grad_enabled = outer
        return table

    return t.call("rotary_emb", forward)


def rotate(t: Builder, x: Tensor, at: Position) -> Tensor:
    """`_apply_rotary_emb` with tables of D/2: x [B, A, S, D]."""
    half = x.shape[-1] // 2
    first, second = split(t, x, (half, half))
    left = ops.sub(t, first * at.cos, second * at.sin)
    right = (second * at.cos) + (first * at.sin)
    return concatenate(t, (left, right), x.shape)


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    bias = config["attention_bias"]
    query = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=bias), d.heads, d.head_size)
    key = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    query, key = rotate(t, query, at), rotate(t, key, at)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    sinks = t.bare("sinks", (d.heads,))
    if t.settings.attn_implementation == "flash_attention_2":
        out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    else:
        out = attention_with_sinks(t, query, key, value, sinks, at.mask, d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=bias)


def router(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Routing:
    """`GptOssTopKRouter`: the best C logits, softmax over those: x [N, H]."""
    count = config["num_local_experts"]
    logits = t.matmul(x, t.bare("weight", (count, x.shape[-1])), t.bare("bias", (count,)))
    values, indices = top_k(t, logits, config["num_experts_per_tok"])
    return Routing(logits, softmax(t, values, values.dtype), indices)


def apply_gate(t: Builder, x: Tensor) -> Tensor:
    """`_apply_gate`: (up + 1) * gate * sigmoid(alpha * gate), gate and up interleaved and clamped: [T, 2·I] to [T, I]."""
    half = (*x.shape[:-1], x.shape[-1] // 2)
    gate, up = narrow(t, x, half), narrow(t, x, half)
    gate = ops.unary(t, "clamp", gate, save="input")
    up = ops.unary(t, "clamp", up, save="input")
    glu = gate * t.activation("sigmoid", ops.scale(t, gate))
    return ops.add_scalar(t, up) * glu


def mlp(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any]) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    shapes = ExpertShapes(config["num_local_experts"], d.hidden, d.intermediate, transposed=True, bias=True)
    tokens = t.view(x, (x.shape[0] * x.shape[1], x.shape[2]))
    routing = t.call("router", lambda t, h: router(t, h, config), tokens)
    out = t.call("experts", lambda t, h: experts(t, h, routing, shapes, apply_gate), tokens)
    return t.view(out, x.shape)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = rms_norm(t, "input_layernorm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = rms_norm(t, "post_attention_layernorm", x)
    x = t.call("mlp", lambda t, h: mlp(t, h, d, config), x)
    return residual + x


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t,
        config,
        lambda t, h, at: decoder_layer(t, h, d, config, at),
        rms_norm,
        tables=lambda t, dtype: [half_table(t, dtype, d.head_size)] * d.layers,
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"gpt_oss"}))
