"""Attention with linear biases, and Bloom's GELU.

Symbols: B micro batch, A attention heads, S sequence length.

Source: transformers 5.23 models/bloom/modeling_bloom.py (`build_alibi_tensor`, `GeLUFunction`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


def alibi_bias(t: AttentionOps, heads: int, dtype: DType) -> tuple[Tensor, list[Tensor]]:
    """The slopes times the key positions, [B·A, 1, S], made once per forward; and what the model's variables keep besides.

    With padding they are made in a function of their own, from positions that the mask counts.
    """
    slopes = t.new((heads,), DType.FLOAT32, "pow")
    if t.settings.padding:
        return _counted_alibi(t, heads, dtype), []
    positions = t.new((t.sequence,), DType.INT64, "arange")
    bias = t.new((heads, 1, t.sequence), DType.FLOAT32, "mul")
    del positions
    repeated = t.new((t.batch * heads, 1, t.sequence), DType.FLOAT32, "repeat")
    del bias
    return ops.to(t, repeated, dtype), [slopes]


def _counted_alibi(t: AttentionOps, heads: int, dtype: DType) -> Tensor:
    """`build_alibi_tensor`: the slopes times `(mask.cumsum(-1) - 1) * mask`."""
    counted = t.new((t.batch, t.sequence), DType.INT64, "cumsum")
    less = t.new(counted.shape, DType.INT64, "sub")
    del counted
    positions = t.new(less.shape, DType.INT64, "mul")
    del less
    bias = t.new((t.batch * heads, 1, t.sequence), DType.FLOAT32, "mul")
    out = ops.to(t, bias, dtype)
    del positions
    return out


def baddbmm(t: AttentionOps, bias: Tensor, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """`bias.baddbmm(a, b)` under the step's autocast, with a bias that needs no gradient; saves both factors."""
    autocast = t.settings.autocast
    if autocast is not None:
        b, a, bias = (ops.to(t, x, autocast) for x in (b, a, bias))
    saved = (b if a.node is not None else None, a if b.node is not None else None)
    node = t.record("baddbmm", (a, b), saved, _baddbmm_backward, (a.shape, b.shape, a.dtype))
    return t.new(shape, a.dtype, "baddbmm", node)


def _baddbmm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, b_shape, dtype = cast(tuple[Shape, Shape, DType], node.meta)
    kept = node.all_stored()
    grad_a = _scaled_product(tape, a_shape, dtype) if node.edges[0] is not None else None
    grad_b = _scaled_product(tape, b_shape, dtype) if node.edges[1] is not None else None
    del kept
    return (grad_a, grad_b)


def _scaled_product(tape: Tape, shape: Shape, dtype: DType) -> Tensor:
    """`maybe_multiply(grad.bmm(other), alpha)`."""
    product = tape.alloc(shape, dtype, "bmm")
    out = tape.new(shape, dtype, "mul")
    del product
    return out


def bloom_gelu(t: Tape, x: Tensor) -> Tensor:
    """`GeLUFunction`: the tanh approximation written out, its input saved by a custom autograd function."""
    outer, t.grad_enabled = t.grad_enabled, False
    out = ops.scale(t, x) * ops.add_scalar(t, _bloom_tanh(t, x))
    t.grad_enabled = outer
    node = t.record("GeLUFunction", (x,), (x,), _bloom_gelu_backward, (x.shape, x.dtype))
    return Tensor(t, x.shape, x.dtype, out.storage, node)


def _bloom_tanh(t: Tape, x: Tensor) -> Tensor:
    return ops.unary(t, "tanh", ops.scale(t, x) * ops.add_scalar(t, ops.scale(t, x) * x))


def _bloom_gelu_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    x = Tensor(tape, shape, dtype, node.stored(0))
    tanh_out = _bloom_tanh(tape, x)
    slope = ops.scale(tape, x) * (
        ops.add_scalar(tape, tanh_out * tanh_out) * ops.add_scalar(tape, ops.scale(tape, x) * x)
    ) + ops.scale(tape, ops.add_scalar(tape, tanh_out))
    return (slope * grad,)
