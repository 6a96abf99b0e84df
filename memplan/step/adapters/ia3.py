"""IA3, a trained scale on a layer's output or on the input of feed-forward layers; BEFT, a trained bias.

Source: peft/tuners/ia3/{layer,bnb}.py, peft/tuners/beft/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor


def ia3(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base(x * l)` on feed-forward layers, `base(x) * l` elsewhere."""
    if layer.is_quantized:
        return _on_quantized(layer, x)
    t, dtype = layer.t, x.dtype
    scaling = _scaling(layer)
    if layer.option("feedforward"):
        x = ops.to(t, x, layer["ia3_l"].dtype)
        return layer.base(ops.to(t, x * scaling, dtype))
    result = layer.base(x)
    return ops.to(t, result * scaling, result.dtype)


def beft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base(x) + bias`."""
    t, bias = layer.t, layer["beft_bias"]
    result = layer.base(x)
    return ops.to(t, result + t.view(bias, bias.shape[1:]), result.dtype)


def _on_quantized(layer: AdaptedLayer, x: Tensor) -> Tensor:
    t = layer.t
    scaling = _scaling(layer)
    converts = t.settings.autocast is None and x.dtype is not DType.FLOAT32
    if converts:
        x = ops.to(t, x, DType.FLOAT32)
    result = layer.base(x * scaling if layer.option("feedforward") else x)
    dtype = result.dtype
    if not layer.option("feedforward"):
        result = result * scaling
    if layer.is_4bit:
        result = ops.clone(t, result)
    return ops.to(t, result, dtype) if converts else result


def _scaling(layer: AdaptedLayer) -> Tensor:
    t, scale = layer.t, layer["ia3_l"]
    return ops.scale(t, t.view(scale, (max(scale.shape),)))
