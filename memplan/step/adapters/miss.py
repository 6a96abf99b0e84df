"""MiSS: the input summed in shards, times one block.

Symbols: R rank.

Source: peft/tuners/miss/layer.py (PEFT 0.21.2).

Known limits:
    Not `init_weights="bat"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import matmul, repeated

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
