"""UniLoRA: LoRA's factors gathered from one vector that all layers share.

Symbols: r rank, n length of the vector.

Source: peft/tuners/unilora/layer.py (PEFT 0.21.2).

Known limits:
    What the gradient of the gathering sorts its indices in, a few integers an entry of the factors, is not on the tape.
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.adapters.vblora import gathered
from memplan.step.tensor import Tensor


def unilora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(F.linear(dropout(x), A), B)`."""
    t, previous, vector = layer.t, x.dtype, layer["unilora_theta_d"]
    result = layer.base(x)
    a, b = (
        gathered(t, vector, layer[f"unilora_indices_{name}"], layer[f"unilora_indices_{name}"].shape)
        * layer[f"unilora_scales_{name}"]
        for name in ("A", "B")
    )
    x = ops.to(t, x, vector.dtype)
    result = result + t.matmul(t.matmul(ops.dropout(t, x, layer.option("dropout")), a, None), b, None)
    result = ops.to(t, result, previous)
    del a, b
    return result
