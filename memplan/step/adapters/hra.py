"""HRA: the weight times Householder reflections, which are materialised, [in, in].

Symbols: r reflections, in and out the layer's sizes.

Source: peft/tuners/hra/layer.py, HRALinear (PEFT 0.21.2).

Known limits:
    Linear layers, without `apply_GS`.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import narrow
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import autocast_mm, div, norm, transposed


def hra(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`F.linear(x, weight @ reflections, bias)`."""
    t, previous = layer.t, x.dtype
    inputs = layer.weight.shape[1]
    new_weight = t.new((inputs, inputs), DType.FLOAT32, "eye")
    delta = _reflections(layer)
    new_weight = autocast_mm(t, ops.to(t, new_weight, delta.dtype), delta)
    weight = ops.to(t, layer.weight, new_weight.dtype)
    new_weight = autocast_mm(t, weight, new_weight)
    bias = ops.to(t, layer.bias, new_weight.dtype) if layer.bias is not None else None
    x = ops.to(t, x, new_weight.dtype)
    result = t.matmul(x, new_weight, bias)
    return ops.to(t, result, previous)


def _reflections(layer: AdaptedLayer) -> Tensor:
    """I (I - 2 u u^T) ..., one unit vector u [in, 1] after the other."""
    t, u = layer.t, layer["hra_u"]
    inputs, rank = u.shape
    u = div(t, u, norm(t, u, (1, rank)))
    weight = t.new((inputs, inputs), u.dtype, "eye")
    for _ in range(rank):
        column = t.view(narrow(t, u, (inputs,), "select"), (inputs, 1))
        weight = ops.sub(t, weight, autocast_mm(t, autocast_mm(t, ops.scale(t, weight), column), transposed(t, column)))
    return weight
