"""torchtune's Gemma 2 attention: scores, a soft cap and masks that every layer makes anew, op by op.

Symbols: B micro batch, S sequence length, A attention heads, K key/value heads, D head size.

Sources: torchtune 0.6.1 models/gemma2/_attention.py; torch 2.13 torch/csrc/autograd/functions/tensor.cpp (`CopySlices`).

Known limits:
    No attention dropout: torchtune's class takes a probability and does not use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps
from memplan.step.eager_attention import soft_cap
from memplan.step.matmul import matmul, merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.tensor import Node, Shape, Tape, Tensor


def softcapped_attention(t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, *, slides: bool) -> Tensor:
    """softmax(cap · tanh(scores / cap) + mask) of q [B, A, S, D] on k and v, whose heads are as many: [B, S, A, D]."""
    batch, heads, length, size = q.shape
    q = scaled_in_place(t, q)
    scores = [matmul(t, q, transpose_last(t, k), (batch, heads, length, length))]
    mask, *others = _mask(t, length, slides=slides)
    weights = soft_cap(t, scores.pop()) + mask  # promoted: the mask is float32
    weights = ops.to(t, softmax(t, weights, DType.FLOAT32), q.dtype)
    out = merge_heads(t, require_contiguous_gradient(t, matmul(t, weights, v, (batch, heads, length, size))))
    t.layer_locals += [mask, *others]  # what `forward` holds until it returns
    return out


def scaled_in_place(t: Tape, x: Tensor) -> Tensor:
    """`x.mul_(number)` of a view; its gradient is written into a copy of the one of the whole."""
    node = t.record("mul_", (x,), (), _copy_slices, (x.shape, x.dtype, x.by_token))
    return Tensor(t, x.shape, x.dtype, x.storage, node, is_view=True, by_token=x.by_token)


def _copy_slices(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, by_token = cast(tuple[Shape, DType, bool], node.meta)
    whole = tape.new(shape, dtype, "new_empty_strided", by_token=by_token)
    cloned = tape.new(shape, dtype, "clone")
    product = tape.new(shape, dtype, "mul")
    del cloned, product
    return (whole,)


def expand_heads(t: Tape, x: Tensor, heads: int) -> Tensor:
    """[B, S, K, D] expanded and reshaped to [B, S, A, D]: a copy, and of a single head a view."""
    shape = (*x.shape[:2], heads, x.shape[3])
    if x.shape[2] == heads:
        return x
    node = t.record("clone" if x.shape[2] > 1 else "expand", (x,), (), _sum_heads, (x.shape,))
    if x.shape[2] > 1:
        return t.new(shape, x.dtype, "clone", node)
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _sum_heads(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def _mask(t: Tape, length: int, *, slides: bool) -> tuple[Tensor, ...]:
    """The causal mask in float32, within a window if the layer slides; and what `forward` holds beside it."""
    square = (length, length)
    ones = t.new(square, DType.BOOL, "_to_copy")  # made on the host
    allowed = t.new(square, DType.BOOL, "tril")
    del ones
    refused = t.new(square, DType.BOOL, "logical_not")
    mask = _where(t, square, scalars=2)
    del refused, allowed
    if not slides:
        return (mask,)
    all_ones = t.new(square, DType.FLOAT32, "ones_like")
    bands = [t.new(square, DType.FLOAT32, op) for op in ("triu", "tril")]
    window = t.new(square, DType.FLOAT32, "mul")
    del bands
    inside = t.new(square, DType.BOOL, "eq")
    mask = _where(t, square, scalars=1)
    del inside
    return mask, all_ones, window


def _where(t: Tape, shape: Shape, *, scalars: int) -> Tensor:
    made = [t.new((), DType.FLOAT32, "scalar_tensor") for _ in range(scalars)]
    out = t.new(shape, DType.FLOAT32, "where")
    del made
    return out
