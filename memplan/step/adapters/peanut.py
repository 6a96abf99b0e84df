"""PEANuT: the update is a small network's answer to the weight: materialised, [in, out].

Symbols: r rank, in and out the layer's sizes.

Source: peft/tuners/peanut/layer.py (PEFT 0.21.2).

Known limits:
    The activations that are named in `ACTIVATIONS`.
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import matmul, transposed

ACTIVATIONS = ("relu", "silu", "gelu", "tanh", "sigmoid")


def peanut(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + x @ (B(f(weight.T @ A.T)) * scaling)`, with `depth` layers around the middle."""
    t = layer.t
    result = layer.base(x)
    dtype = result.dtype
    delta_weight = _delta_weight(layer)
    casted = ops.to(t, x, delta_weight.dtype)
    delta = matmul(t, casted, delta_weight)
    result = result + ops.to(t, delta, dtype)
    del delta_weight, casted, delta
    return result


def _delta_weight(layer: AdaptedLayer) -> Tensor:
    t, a, function = layer.t, layer["peanut_A"], layer.option("act_fn")
    weight = ops.to(t, transposed(t, layer.weight), a.dtype)
    delta = t.activation(function, matmul(t, weight, transposed(t, a)))
    residuals = []
    depth = layer.option("depth")
    for index in range(depth):
        residuals.append(delta)
        delta = t.activation(function, layer.linear(delta, f"peanut_encoders.{index}"))
    for index in range(depth):
        delta = t.activation(function, layer.linear(delta, f"peanut_decoders.{index}"))
        delta = delta + residuals[depth - 1 - index]
    delta = layer.linear(delta, "peanut_B")
    result = ops.scale(t, delta)
    del weight, residuals, delta
    return result
