"""Attention that some models write out in their own way: logits under a soft cap (Gemma 2), sinks (gpt-oss).

Symbols: B micro batch, S query length, T key length, A attention heads, K key/value heads, D head size.

Source: `eager_attention_forward` in transformers 5.23 models/gemma2/modeling_gemma2.py and models/gpt_oss/modeling_gpt_oss.py.
Both models refuse sdpa (`_supports_sdpa = False`), so that eager attention is their default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps, autocast_matmul, detached
from memplan.step.matmul import merge_heads, repeat_kv, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import concatenate, narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor


def softcapped_attention(
    t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(cap * tanh(scores / cap)) of q [B, A, S, D] on k, v [B, K, T, D]: [B, S, A, D]."""
    batch, heads, length, size = q.shape
    key, value = repeat_kv(t, k, heads), repeat_kv(t, v, heads)
    weights = ops.scale(t, autocast_matmul(t, q, transpose_last(t, key), (batch, heads, length, k.shape[2])))
    weights = soft_cap(t, weights)
    if mask is not None:
        weights = weights + mask
    weights = ops.to(t, softmax(t, weights, DType.FLOAT32), q.dtype)
    weights = ops.dropout(t, weights, dropout)
    t.layer_locals.append(detached(weights))  # `hidden_states, _ = self.self_attn(...)`
    out = require_contiguous_gradient(t, autocast_matmul(t, weights, value, (batch, heads, length, size)))
    return merge_heads(t, out)


def soft_cap(t: Tape, x: Tensor) -> Tensor:
    """`tanh(x / cap) * cap`, op by op."""
    x = ops.scale(t, x, "div")
    x = ops.unary(t, "tanh", x, save="output")
    return ops.scale(t, x)


def attention_with_sinks(
    t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attention whose softmax has one more column, a learned logit per head: q [B, A, S, D] to [B, S, A, D]."""
    batch, heads, length, size = q.shape
    columns = k.shape[2]
    key, value = repeat_kv(t, k, heads), repeat_kv(t, v, heads)
    weights = ops.scale(t, autocast_matmul(t, q, transpose_last(t, key), (batch, heads, length, columns)))
    if mask is not None:
        weights = weights + mask
    sink_column = _expand(t, t.view(sinks, (1, heads, 1, 1)), (batch, heads, length, 1))
    combined = concatenate(t, (weights, sink_column), (batch, heads, length, columns + 1))
    combined = ops.sub(t, combined, _max_last(t, combined))
    probabilities = softmax(t, combined, combined.dtype)
    scores = narrow(t, probabilities, (batch, heads, length, columns))
    weights = ops.to(t, ops.dropout(t, scores, dropout), value.dtype)
    t.layer_locals.append(detached(weights))
    out = require_contiguous_gradient(t, autocast_matmul(t, weights, value, (batch, heads, length, size)))
    return merge_heads(t, out)


def _expand(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    node = t.record("expand", (x,), (), _sum_back, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _sum_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def _max_last(t: Tape, x: Tensor) -> Tensor:
    """`x.max(dim=-1, keepdim=True).values`: saves the indices; its gradient is scattered into zeros."""
    shape = (*x.shape[:-1], 1)
    out = t.alloc(shape, x.dtype, "max")
    indices = t.alloc(shape, DType.INT64, "max")
    node = t.record("max", (x,), (indices,), _scatter_back, (x.shape,))
    return Tensor(t, shape, x.dtype, out, node)


def _scatter_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "value_selecting_reduction_backward")
    del kept
    return (out,)
