"""PSOFT: a rotation between the principal directions of the weight.

Symbols: r rank.

Source: peft/tuners/psoft/layer.py (PEFT 0.21.2).

Known limits:
    An exact Cayley transform. What cuSOLVER borrows, for the small systems and for the decomposition of the weight while the
    adapter is made, is not on the tape (`memplan.blind_spots`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.boft import solve
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import matmul, transposed


def psoft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + (R(A(dropout(x))) - A(dropout(x))) @ B.T * scaling`."""
    t = layer.t
    result = layer.base(x)
    dtype = result.dtype
    a, b = layer["_psoft_A_cache"], layer["_psoft_B_cache"]
    casted = ops.to(t, x, a.dtype)
    dropped = ops.dropout(t, casted, layer.option("dropout"))
    xa = matmul(t, dropped, transposed(t, a))
    xr = _rotated(layer, xa)
    delta = matmul(t, ops.sub(t, xr, xa), transposed(t, b))
    result = result + ops.scale(t, delta)
    result = ops.to(t, result, dtype)
    del casted, dropped, xa, xr, delta
    return result


def _rotated(layer: AdaptedLayer, x: Tensor) -> Tensor:
    t = layer.t
    rotation = _matrix(layer)
    return ops.to(t, matmul(t, x, transposed(t, ops.to(t, rotation, x.dtype))), x.dtype)


def _matrix(layer: AdaptedLayer) -> Tensor:
    """`OrthLayer.get_matrix`."""
    t, weight = layer.t, layer["psoft_R"]
    rotation, original = weight, weight.dtype
    if layer.option("orth"):
        size = layer["_psoft_A_cache"].shape[0]
        skew = _skew_symmetric(t, weight, (size, size))
        eye = t.new((size, size), skew.dtype, "eye")
        skew = ops.to(t, skew, DType.FLOAT32)
        rotation = solve(t, ops.sub(t, eye, skew), eye + skew)
        rotation = _scaled(layer, rotation)
        del skew, eye
        return ops.to(t, rotation, original)
    return _scaled(layer, rotation)


def _scaled(layer: AdaptedLayer, rotation: Tensor) -> Tensor:
    t = layer.t
    size = rotation.shape[0]
    if layer.has("psoft_R.vector_b"):
        rotation = t.view(layer["psoft_R.vector_b"], (size, 1)) * rotation
    if layer.has("psoft_R.vector_a"):
        rotation = rotation * t.view(layer["psoft_R.vector_a"], (1, size))
    return rotation


def _skew_symmetric(t: Tape, vector: Tensor, shape: Shape) -> Tensor:
    zeros = t.new(shape, vector.dtype, "zeros")
    node = t.record("index_put", (vector,), (), _index_backward, (vector.shape, vector.dtype))
    matrix = t.new(shape, vector.dtype, "index_put", node)
    del zeros
    return ops.sub(t, matrix, t.view(matrix, shape))


def _index_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "index"),)
