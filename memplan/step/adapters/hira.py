"""HiRA: the weight multiplied by a low-rank matrix, entry by entry: the update is materialised, [out, in].

Symbols: r rank, in and out the layer's sizes.

Source: peft/tuners/hira/{layer,bnb}.py (PEFT 0.21.2).

Known limits:
    Linear layers.
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import autocast_mm, transposed


def hira(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(dropout(x), weight * (B A))`."""
    if layer.is_4bit:
        return _on_4bit(layer, x)
    if layer.is_quantized:
        return _on_int8(layer, x)
    t, a, b = layer.t, layer["hira_A"], layer["hira_B"]
    result = layer.base(x)
    dtype = result.dtype
    product = autocast_mm(t, transposed(t, a), transposed(t, b))
    x = ops.to(t, x, a.dtype)
    dropped = ops.dropout(t, x, layer.option("dropout"))
    effective = layer.weight * transposed(t, product)  # the call holds it while autocast's copy is multiplied
    update = t.matmul(dropped, effective, None)
    del effective
    result = result + update
    result = ops.to(t, result, dtype)
    del product, dropped, update
    return result


def _on_4bit(layer: AdaptedLayer, x: Tensor) -> Tensor:
    result = layer.base(x)
    result = ops.clone(layer.t, result)
    return _updated(layer, x, result, layer.base_weight())


def _on_int8(layer: AdaptedLayer, x: Tensor) -> Tensor:
    weight = layer.base_weight()
    return _updated(layer, x, layer.base(x), weight)


def _updated(layer: AdaptedLayer, x: Tensor, result: Tensor, weight: Tensor) -> Tensor:
    t, a, b = layer.t, layer["hira_A"], layer["hira_B"]
    converts, dtype = t.settings.autocast is None, result.dtype
    if converts:
        x = ops.to(t, x, a.dtype)
    dropped = ops.dropout(t, x, layer.option("dropout"))
    product = autocast_mm(t, b, a)
    effective = weight * product
    update = t.matmul(dropped, effective, None)
    if converts:
        update = ops.to(t, update, dtype)
    result = result + update
    if converts:
        result = ops.to(t, result, dtype)
    del dropped, product, effective, update
    return result
