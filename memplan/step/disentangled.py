"""What DeBERTa's disentangled attention is made of: bucketed positions, gather, repeat, masked fill.

Symbols: B micro batch, A attention heads, S sequence length, R relative positions, D head size.

Sources: transformers 5.23 models/deberta_v2/modeling_deberta_v2.py; tools/autograd/derivatives.yaml, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step.attention import AttentionOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


def relative_positions(t: AttentionOps, bucketed: bool) -> Tensor:
    """`build_relative_position`: int64 [1, S, S]; log buckets are computed in float32."""
    square = (1, t.sequence, t.sequence)
    distances = t.new(square, DType.INT64, "sub")
    if not bucketed:
        return distances
    signs = t.new(square, DType.INT64, "sign")
    lengths = t.new(square, DType.INT64, "where")
    logs = t.new(square, DType.FLOAT32, "add")
    buckets = t.new(square, DType.FLOAT32, "where")
    positions = t.new(square, DType.INT64, "_to_copy")
    del signs, lengths, logs, distances, buckets
    return positions


def clamped_positions(t: Tape, positions: Tensor, *, negated: bool = False) -> Tensor:
    """`torch.clamp(positions + span, 0, 2 * span - 1)`, of `-positions` where `negated`: int64 [1, S, S]."""
    opposite = t.new(positions.shape, DType.INT64, "neg") if negated else None
    shifted = t.new(positions.shape, DType.INT64, "add")
    del opposite
    clamped = t.new(positions.shape, DType.INT64, "clamp")
    del shifted
    return clamped


def gather(t: Tape, x: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """`torch.gather(x, -1, index)`; saves both; backward scatters into zeros as large as `x`."""
    node = t.record("gather", (x,), (x, index), _gather_backward, (x.shape,))
    return t.new(shape, x.dtype, "gather", node)


def _gather_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "gather_backward")
    del kept
    return (out,)


def repeat(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """`x.repeat(...)`: a copy; backward sums over the repeats."""
    node = t.record("repeat", (x,), (), _repeat_backward, (x.shape,))
    return t.new(shape, x.dtype, "repeat", node)


def _repeat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def masked_fill(t: Tape, x: Tensor, mask: Tensor) -> Tensor:
    """`x.masked_fill(~mask, ...)` with a boolean mask; saves the inverted mask."""
    inverted = t.new(mask.shape, DType.BOOL, "bitwise_not")
    node = t.record("masked_fill", (x,), (inverted,), _masked_fill_backward, (x.shape,))
    return t.new(x.shape, x.dtype, "masked_fill", node)


def _masked_fill_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "masked_fill")
    del kept
    return (out,)
