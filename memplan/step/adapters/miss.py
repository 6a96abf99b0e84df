"""MiSS: the input summed in shards, times one block.

Symbols: R rank.

Source: peft/tuners/miss/layer.py (PEFT 0.21.2).

Known limits:
    `init_weights="bat"` on weights that are not quantized.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import copy, permuted
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import matmul, mm, repeated

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps


def miss(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + sum(dropout(x).reshape(..., in / R, R), dim=-2) @ block`; an input that R does not divide is padded."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    if layer.is_4bit:
        result = ops.clone(t, result)
    block = layer["miss_block"]
    rank = block.shape[0]
    outputs, inputs = layer.weight.shape
    if block.shape[1] != outputs:
        block = repeated(t, block, (rank, outputs))
    if inputs % rank:
        x = _pad(t, x, inputs + rank - inputs % rank)
    x = ops.to(t, x, block.dtype)
    result = result + matmul(t, _sum_shards(t, ops.dropout(t, x, layer.option("dropout")), rank), block)
    return ops.to(t, result, previous)


def bat(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`F.linear(x, weight + weight_blocks @ block + block, bias)`: the weight is materialised, [out, in]."""
    t, previous = layer.t, x.dtype
    weight = ops.clone(t, layer.weight)
    delta = _bat_delta(layer, weight)
    weight = weight + delta
    x = ops.to(t, x, weight.dtype)
    bias = ops.to(t, layer.bias, weight.dtype) if layer.bias is not None else None
    result = t.matmul(x, weight, bias)
    result = ops.to(t, result, previous)
    del delta, weight, bias
    return result


def _bat_delta(layer: AdaptedLayer, weight: Tensor) -> Tensor:
    """Blocks [r, r] of the weight, each times its row's block, which is added as well."""
    t, block = layer.t, layer["miss_block"]
    rows, rank, _ = block.shape
    columns = weight.shape[1] // rank
    shape, batched = (columns, rows, rank, rank), (columns * rows, rank, rank)
    casted = ops.to(t, weight, block.dtype)
    product = permuted(t, _batched_product(t, casted, block, shape, batched), shape)
    result = product + block
    del product
    out = copy(t, result, weight.shape)
    del casted, result
    return out


def _batched_product(t: LayerOps, weight: Tensor, block: Tensor, shape: Shape, batched: Shape) -> Tensor:
    """`W @ block`: both are copied to be batches of matrices."""
    autocast = t.settings.autocast
    if autocast is not None:
        block = t.cast_weight(block, autocast)
        weight = ops.to(t, weight, autocast)
    left = t.view(copy(t, weight, shape), batched)
    return mm(t, left, t.view(repeated(t, block, shape, "clone"), batched))


def _pad(t: Tape, x: Tensor, size: int) -> Tensor:
    node = t.record("constant_pad_nd", (x,), (), _pad_backward, (x.shape, x.dtype))
    return t.new((*x.shape[:-1], size), x.dtype, "constant_pad_nd", node)


def _pad_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "constant_pad_nd"),)


def _sum_shards(t: LayerOps, x: Tensor, rank: int) -> Tensor:
    """Backward expands the gradient, and copies it to view it as the input."""
    dtype = DType.FLOAT32 if t.settings.autocast is not None else x.dtype  # autocast sums in float32
    node = t.record("sum", (x,), (), _sum_backward, (x.shape, x.dtype))
    return t.new((*x.shape[:-1], rank), dtype, "sum", node)


def _sum_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    if grad.dtype is not dtype:
        grad = tape.new(grad.shape, dtype, "_to_copy")
    return (tape.new(shape, dtype, "clone"),)
