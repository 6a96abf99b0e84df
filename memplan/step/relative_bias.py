"""T5's relative position bias, and attention that adds it.

Symbols: B micro batch, A attention heads, S query length, T key length, D head size, N buckets.

Sources: transformers 5.23 models/t5/modeling_t5.py (`compute_bias`, `eager_attention_forward`),
integrations/sdpa_attention.py (`create_position_bias_mask`); torch 2.13
aten/src/ATen/native/transformers/cuda/attention_backward.cu (`_efficient_attention_backward`, `grad_bias`).

Known limits:
    A bias that is trained is taken to run the memory-efficient kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps, autocast_matmul, detached
from memplan.step.attention_kernels import (
    Kernel,
    Meta,
    backward_workspaces,
    choose_kernel,
    keeps_logsumexp,
    math_sdpa,
    meta,
)
from memplan.step.encoder import expand
from memplan.step.matmul import merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import copy
from memplan.step.tables import table
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor


def relative_bias(t: AttentionOps, name: str, buckets: int, heads: int, length: int, key_length: int) -> Tensor:
    """`compute_bias`: an embedding of bucketed distances seen as [1, A, S, T]; its indices stay for backward."""
    weight = table(t, name, buckets, heads)
    outer, t.module = t.module, t.join(name)
    square = (length, key_length)
    distances = t.new(square, DType.INT64, "sub")
    signs = t.new(square, DType.INT64, "mul")
    large = t.new(square, DType.FLOAT32, "mul")
    index = t.new(square, DType.INT64, "add")
    del distances, signs, large
    node = t.record("embedding", (weight,), (index,), _embedding_backward, (weight.shape, weight.dtype))
    values = t.new((*square, heads), weight.dtype, "embedding", node)
    t.module = outer
    return t.view(values, (1, heads, *square))


def _embedding_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "embedding_dense_backward")
    del kept
    return (out,)


def biased_attention(
    t: AttentionOps,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    dropout: float,
    *,
    causal: bool,
) -> Tensor:
    """Attention of q [B, A, S, D] on k, v [B, A, T, D] with a bias [1, A, S, T], as [B, S, A, D]."""
    if t.settings.attn_implementation == "eager":
        return _eager(t, q, k, v, bias, mask, dropout)
    masked = _bias_mask(t, bias, mask, causal)  # alive until attention returns, whatever autocast makes of it
    bias, autocast = masked, t.settings.autocast
    if autocast is not None:
        q, k, v, bias = (ops.to(t, x, autocast) for x in (q, k, v, bias))
    return _sdpa(t, q, k, v, bias, dropout)


def _eager(
    t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    scores = ops.scale(t, autocast_matmul(t, q, transpose_last(t, k), (*q.shape[:3], k.shape[2])))
    scores = scores + bias
    if mask is not None:
        scores = scores + mask
    weights = softmax(t, scores, DType.FLOAT32 if t.settings.autocast else scores.dtype)
    weights = ops.dropout(t, weights, dropout)
    t.layer_locals.append(detached(weights))  # `hidden_states, bias, _ = self.layer[0](...)`
    return merge_heads(t, require_contiguous_gradient(t, autocast_matmul(t, weights, v, q.shape)))


def _bias_mask(t: AttentionOps, bias: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`create_position_bias_mask`: forbidden places become minus infinity; the permuted bias is made contiguous."""
    shape = bias.shape
    if mask is not None or causal:
        batch = t.batch if mask is not None else 1
        shape = (batch, *bias.shape[1:])
        allowed = mask if mask is not None else t.new((1, 1, *bias.shape[2:]), DType.BOOL, "ge")
        node = t.record("where", (bias,), (allowed,), _where_backward, (bias.shape, shape))
        bias = t.new(shape, bias.dtype, "where", node)
    elif not bias.is_view:  # made contiguous
        return bias
    return copy(t, bias, shape)


def _where_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, full = cast(tuple[Shape, Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(full, grad.dtype, "where")
    if shape != full:
        out = tape.new(shape, grad.dtype, "sum")
    del kept
    return (out,)


def _sdpa(t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    batch, heads, length, size = q.shape
    kernel = choose_kernel(
        q.dtype,
        size,
        has_mask=True,
        grouped=False,
        compute_capability=t.settings.compute_capability,
        torch_version=t.settings.torch_version,
        dropout=dropout,
    )
    if kernel is Kernel.MATH:
        return math_sdpa(t, q, k, v, bias, dropout)
    name = f"_scaled_dot_product_{Kernel.EFFICIENT}_attention"
    shape = (batch, length, heads, v.shape[-1])
    given = bias  # alive until attention returns
    last = k.shape[2]
    if last % 8:  # attention.cpp, `pad_bias<8>`
        bias = _padded(t, given, (*given.shape[:3], last + 8 - last % 8))
    bias = expand(t, bias, (batch, *given.shape[1:])) if given.shape[0] != batch else bias
    out = t.alloc(shape, q.dtype, name)
    rows = -(-length // 32) * 32
    lse = t.alloc((batch, heads, rows), DType.FLOAT32, name) if keeps_logsumexp(t, q, k, v) else None
    random_state = [t.alloc((2,), DType.INT64, name), t.alloc((1,), DType.INT64, name)]  # philox seed and offset
    saved: tuple[Tensor | Storage | None, ...] = (q, k, v, bias, out, lse, *random_state)
    metas = (meta(q), meta(k), meta(v))
    node = t.record("sdpa", (q, k, v, bias), saved, _sdpa_backward, metas)
    del given
    return Tensor(t, shape, q.dtype, out, node)


def _padded(t: Tape, bias: Tensor, shape: Shape) -> Tensor:
    """Rows padded to a multiple of 8 elements and sliced back; the gradient is scattered, then cut."""
    node = t.record("constant_pad_nd", (bias,), (), _pad_backward, (bias.shape, shape))
    return t.new(shape, bias.dtype, "constant_pad_nd", node)


def _pad_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, padded = cast(tuple[Shape, Shape], node.meta)
    scattered = tape.new(padded, grad.dtype, "slice_backward")
    cut = tape.new(shape, grad.dtype, "constant_pad_nd")
    del scattered
    return (cut,)


def _sdpa_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    q, k, v = cast(tuple[Meta, Meta, Meta], node.meta)
    kept = node.all_stored()
    name = f"_scaled_dot_product_{Kernel.EFFICIENT}_attention_backward"
    grads: list[Tensor | None] = [tape.new(m.shape, m.dtype, name, by_token=m.by_token) for m in (q, k, v)]
    if node.edges[3] is not None:
        width = -(-k.shape[2] // 16) * 16
        grads.append(tape.new((*q.shape[:3], width), q.dtype, name))
    else:
        grads.append(None)
    temporaries = [tape.alloc((size,), DType.UINT8, name) for size in backward_workspaces(Kernel.EFFICIENT, q, k)]
    del temporaries, kept
    return tuple(g if edge is not None else None for g, edge in zip(grads, node.edges, strict=True))
