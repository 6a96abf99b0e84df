"""VeRA: trained scales over projections that all layers share.

Source: peft/tuners/vera/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor


def vera(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + lambda_b * F.linear(lambda_d * F.linear(dropout(x), A[:, :in]), B[:out])`."""
    t, previous = layer.t, x.dtype
    outputs, inputs = layer.weight.shape
    result = layer.base(x)
    dtype = result.dtype
    if layer.is_4bit:
        result = ops.clone(t, result)
    lambda_d, lambda_b = layer["vera_lambda_d"], layer["vera_lambda_b"]
    rank = layer["vera_A"].shape[0]
    sliced_a = t.view(layer["vera_A"], (rank, inputs))
    sliced_b = t.view(layer["vera_B"], (outputs, rank))
    x = ops.to(t, x, lambda_d.dtype)
    # The inner product is nobody's: it goes as soon as B has been applied.
    result = result + lambda_b * t.matmul(
        lambda_d * t.matmul(ops.dropout(t, x, layer.option("dropout")), sliced_a, None), sliced_b, None
    )
    return ops.to(t, ops.to(t, result, dtype), previous)
