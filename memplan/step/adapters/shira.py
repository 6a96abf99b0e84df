"""SHiRA: chosen entries of the weight trained, added to a copy of it.

Symbols: n trained entries, in and out the layer's sizes.

Source: peft/tuners/shira/layer.py (PEFT 0.21.2); torch 2.13 SparseCUDATensorMath.cu (`add_out_dense_sparse_cuda`),
FunctionsManual.cpp (`sparse_constructor_values_backward`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor


def shira(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`F.linear(x, weight.clone() + sparse, bias)`."""
    t = layer.t
    weight = ops.clone(t, layer.weight)
    weight = _add_sparse(t, weight, ops.scale(t, layer["shira_weight"]))
    return t.matmul(x, weight, layer.bias)


def creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`random_mask` and `update_layer`: the places of the entries, by way of a mask; the entries arrive last."""
    t, weight = layer.t, layer["shira_weight"]
    number, shape = weight.shape[0], layer.weight.shape
    chosen = t.alloc((number,), DType.INT64, "_to_copy")
    ones = t.alloc((number,), DType.BOOL, "_to_copy")
    mask = t.alloc(shape, DType.BOOL, "_to_copy")
    del chosen, ones
    equal = t.alloc(shape, DType.BOOL, "eq")
    found = t.alloc((number, 2), DType.INT64, "nonzero")
    del equal
    both = t.alloc((2, number), DType.INT64, "cat")
    indices = t.new((2, number), DType.INT32, "_to_copy")
    del both
    values = t.new(weight.shape, weight.dtype, "_to_copy")
    del found, mask
    return {"shira_indices": indices, "shira_weight": values}


def _add_sparse(t: Tape, dense: Tensor, values: Tensor) -> Tensor:
    """`dense += sparse_coo_tensor(indices, values)`: the places are kept as flat indices."""
    (number,) = values.shape
    indices = t.alloc((2, number), DType.INT64, "_to_copy")
    product = t.alloc((number,), DType.INT64, "mul")
    flat = t.alloc((number,), DType.INT64, "add")
    del product
    values = ops.to(t, values, dense.dtype)
    node = t.record("add_", (values,), (values, flat), _add_sparse_backward, (values.shape, dense.shape))
    del indices
    return Tensor(t, dense.shape, dense.dtype, dense.storage, node)


def _add_sparse_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dense = cast(tuple[Shape, Shape], node.meta)
    kept = node.all_stored()
    strided = tape.alloc(dense, grad.dtype, "new_empty_strided")
    cloned = tape.alloc(dense, grad.dtype, "clone")
    out = tape.new(shape, grad.dtype, "index_select")
    del cloned, strided, kept
    return (out,)
