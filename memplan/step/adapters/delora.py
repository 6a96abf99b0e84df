"""DeLoRA: LoRA whose factors are normalised, with a trained bound.

Symbols: r rank.

Source: peft/tuners/delora/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.clamping import clamp_from_below
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import div, norm


def delora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base + B(A(dropout(x) * norms) * lambda / r / (|A| |B|))`."""
    t, previous = layer.t, x.dtype
    a, b = layer["delora_A"], layer["delora_B"]
    rank = a.shape[0]
    base_out = layer.base(x)
    add_out = t.new(base_out.shape, base_out.dtype, "zeros_like")
    dropped = ops.dropout(t, x, layer.option("dropout"))
    h = t.matmul(dropped * layer["delora_w_norm"], a, None)
    a_norm = clamp_from_below(t, norm(t, a, (rank,)))
    b_norm = clamp_from_below(t, norm(t, b, (rank,)))
    scaling = div(t, ops.scale(t, layer["delora_lambda"], "div"), a_norm * b_norm)
    h = h * scaling
    h = t.matmul(h, b, None)
    add_out = ops.add_in_place(t, add_out, h)
    result = base_out + ops.to(t, add_out, base_out.dtype)
    result = ops.to(t, result, previous)
    del dropped, h, a_norm, b_norm, scaling, base_out, add_out
    return result
