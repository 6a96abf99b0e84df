"""AdaLoRA: LoRA with singular values, and what it adds to the loss.

Symbols: R rank.

Source: peft/tuners/adalora/{layer,bnb,model}.py (PEFT 0.21.2).

Known limits:
    Before ranks are pruned, when the most is alive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import autocast_mm, div, matmul, norm, transposed

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps


def adalora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result += dropout(x) @ (A * E).T @ B.T * scaling / ranknum`."""
    t = layer.t
    result = layer.base(x)
    dtype = result.dtype
    if layer.is_4bit:
        result = ops.clone(t, result)
    ranknum = ops.add_scalar(t, layer["ranknum"])
    converts = not layer.is_quantized or t.settings.autocast is None
    if converts:
        x = ops.to(t, x, layer["lora_A"].dtype)
    factors = layer["lora_A"] * layer["lora_E"]
    dropped = ops.dropout(t, x, layer.option("dropout"))
    output = matmul(t, matmul(t, dropped, transposed(t, factors)), transposed(t, layer["lora_B"]))
    del factors, dropped
    if layer.is_quantized and converts:
        output = ops.to(t, output, dtype)
    output = ops.scale(t, output)
    output = div(t, output, ranknum)
    return ops.add_in_place(t, result, output)


def orthogonality(t: LayerOps, paths: Iterable[str], loss: Tensor) -> Tensor:
    """The mean of ||P P^T - I|| over every A and B of the layers at `paths`, added to the loss."""
    total: Tensor | None = None
    for path in paths:
        a, b = t.parameters[f"{path}.lora_A"], t.parameters[f"{path}.lora_B"]
        for left, right in ((a, transposed(t, a)), (transposed(t, b), b)):
            covariance = autocast_mm(t, left, right)
            eye = t.new(covariance.shape, covariance.dtype, "empty_like")
            size = norm(t, ops.sub(t, covariance, eye), ())
            total = ops.add_scalar(t, size) if total is None else ops.add_in_place(t, total, size)
    assert total is not None
    total = ops.scale(t, total, "div")
    return ops.add_in_place(t, loss, ops.scale(t, total))
