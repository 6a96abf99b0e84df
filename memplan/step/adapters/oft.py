"""OFT: the input rotated in blocks, by the Cayley transform of skew-symmetric matrices as a Neumann series.

Symbols: B micro batch, S sequence length, n blocks, b block size, in = n b.

Source: peft/tuners/oft/layer.py, OFTRotationModule (PEFT 0.21.2).

Known limits:
    No `coft`, `block_share`, `module_dropout`, and no exact Cayley transform.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import copy, permuted
from memplan.step.tensor import Node, Shape, Tape, Tensor, count_elements
from memplan.step.weight_ops import autocast_mm

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps


def oft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base(rotate(x))`."""
    t, previous, weight = layer.t, x.dtype, layer["oft_R"]
    x = ops.to(t, x, weight.dtype)
    x = _rotate(layer, x, weight)
    return ops.to(t, layer.base(ops.to(t, x, previous)), previous)


def _rotate(layer: AdaptedLayer, x: Tensor, weight: Tensor) -> Tensor:
    t, required = layer.t, x.dtype
    blocks, size = weight.shape[0], x.shape[-1] // weight.shape[0]
    rotation = cayley(t, weight, (blocks, size, size), layer.option("terms"))
    rows = count_elements(x.shape[:-1])  # a pooler's input has one dimension less
    # einsum("...rk,rkc->...rc") permutes its operands and multiplies them with bmm, the rotation on the left.
    shards = permuted(t, x, (blocks, size, rows))
    rotated = autocast_mm(t, rotation, shards)
    del shards
    return ops.to(t, copy(t, rotated, x.shape), required)  # back to [B, S, in]


def cayley(t: LayerOps, vector: Tensor, shape: Shape, terms: int) -> Tensor:
    """I + 2 Q + 2 Q^2 + ... + Q^(terms - 1), [n, b, b], added up in place."""
    skew = _skew_symmetric(t, vector, shape)
    eye = t.new(shape[1:], vector.dtype, "eye")
    total = t.new(shape, vector.dtype, "repeat")
    del eye
    if terms == 1:
        return total
    total = ops.add_in_place(t, total, skew, scaled=True)
    if terms == 2:
        return total
    squared = autocast_mm(t, skew, skew)
    total = ops.add_in_place(t, total, squared, scaled=True)
    power = squared
    for _ in range(3, terms - 1):
        power = autocast_mm(t, power, skew)
        total = ops.add_in_place(t, total, power, scaled=True)
    power = autocast_mm(t, power, skew)
    return ops.add_in_place(t, total, power)


def _skew_symmetric(t: Tape, vector: Tensor, shape: Shape) -> Tensor:
    """The matrices with `vector` above their diagonals, less their transposes."""
    storage = t.alloc(shape, vector.dtype, "zeros")
    node = t.record("index_put_", (vector,), (), _index_backward, (vector.shape, vector.dtype))
    matrix = Tensor(t, shape, vector.dtype, storage, node)
    return ops.sub(t, matrix, t.view(matrix, shape))


def _index_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "index"),)
