"""DEFT: a subspace of the output taken out and a low-rank update put in; PaRa, its first half alone.

Symbols: r rank, in and out the layer's sizes.

Source: peft/tuners/deft/layer.py (PEFT 0.21.2).

Known limits:
    The projection by `relu`, not by a QR decomposition.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import matmul, mm, transposed


def deft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base - (base @ relu(P)) @ P.T + F.linear(dropout(x), R * scaling) @ P.T`, in float32."""
    t, previous, bias = layer.t, x.dtype, layer.bias
    base_out = layer.base(x)
    result = ops.to(t, base_out, DType.FLOAT32)
    base_product = result if bias is None else ops.sub(t, result, ops.to(t, bias, DType.FLOAT32))
    x = ops.to(t, x, DType.FLOAT32)
    p = ops.to(t, layer["deft_P"], DType.FLOAT32)
    right = ops.unary(t, "relu", p, save="output", backward_op="threshold_backward")
    correction = matmul(t, matmul(t, base_product, right), transposed(t, p))
    result = ops.sub(t, result, correction)
    if layer.has("deft_R"):
        r = ops.scale(t, ops.to(t, layer["deft_R"], DType.FLOAT32))
        dropped = ops.dropout(t, x, layer.option("dropout"))
        result = result + matmul(t, t.matmul(dropped, r, None), transposed(t, p))
        result = ops.to(t, result, previous)
        del r, dropped
    result = ops.to(t, result, previous)
    del base_out, base_product, p, right, correction
    return result


def creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`reset_deft_parameters`: R is relu(P).T @ weight, in float32; the parameters arrive then."""
    t, p, r = layer.t, layer["deft_P"], layer["deft_R"]
    on_device = t.new(p.shape, DType.FLOAT32, "_to_copy")
    right = ops.unary(t, "relu", on_device)
    weight = ops.to(t, layer.weight, DType.FLOAT32)
    initial = mm(t, transposed(t, right), weight)
    initial = ops.scale(t, initial, "div")
    del on_device, right, weight, initial
    return {"deft_P": t.new(p.shape, p.dtype, "_to_copy"), "deft_R": t.new(r.shape, r.dtype, "_to_copy")}
