"""GLoRA: weight and bias scaled, shifted and prompted, each materialised, [out, in].

Symbols: r rank, in and out the layer's sizes.

Source: peft/tuners/glora/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import narrow
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import autocast_mm


def glora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base + F.linear(x, weight + weight * A + B, bias + bias * D + E + weight @ C) - base`."""
    t, weight, bias = layer.t, layer.weight, layer.bias
    base_result = layer.base(x)
    dtype = base_result.dtype
    a, b, c, d, e = (ops.to(t, _path(layer, name), weight.dtype) for name in "ABCDE")
    effective = weight + weight * a + b
    effective_bias = None
    if bias is not None:
        effective_bias = bias + bias * d + e + t.view(autocast_mm(t, weight, c), bias.shape)
    adapted = t.matmul(x, effective, effective_bias)
    result = base_result + adapted
    result = ops.sub(t, result, ops.scale(t, base_result))
    result = ops.to(t, result, dtype)
    del a, b, c, d, e, effective, effective_bias, adapted, base_result
    return result


def _path(layer: AdaptedLayer, name: str) -> Tensor:
    t, path = layer.t, f"glora_{name}"
    if layer.has(f"{path}.Xd"):
        return autocast_mm(t, layer[f"{path}.Xd"], layer[f"{path}.Xu"])
    if layer.has(f"{path}.zeros"):
        return layer[f"{path}.zeros"]
    x = layer[f"{path}.X"]
    return narrow(t, x, (), "select") if x.shape == (1,) else x
