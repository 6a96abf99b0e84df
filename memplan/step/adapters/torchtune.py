"""torchtune's `LoRALinear` and `DoRALinear`: factors in the model's own type, without casts.

Symbols: R rank.

Source: torchtune 0.6.1 modules/peft/{lora,dora}.py.
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import detached, div, transposed, vector_norm


def lora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`out + (alpha / rank) * lora_b(lora_a(dropout(x)))`."""
    t = layer.t
    out = layer.base(x)
    update = layer.linear(ops.dropout(t, x, layer.option("dropout")), "lora_A")
    update = ops.scale(t, layer.linear(update, "lora_B"))
    return out + update


def dora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """LoRA with the direction and the magnitude of the weight apart."""
    t = layer.t
    out = layer.base(x)
    x = ops.dropout(t, x, layer.option("dropout"))
    update = layer.linear(layer.linear(x, "lora_A"), "lora_B")
    width = layer["lora_A"].shape[1]
    eye = t.new((width, width), x.dtype, "eye")
    lora_weight = transposed(t, layer.linear(layer.linear(eye, "lora_A"), "lora_B"))
    norm = weight_norm(layer, detached(lora_weight))
    scale = t.view(div(t, layer["lora_magnitude_vector"], norm), (1, *norm.shape))
    result = ops.add_scalar(t, scale) * out + ops.scale(t, scale * update)
    return result + out


def weight_norm(layer: AdaptedLayer, lora_weight: Tensor) -> Tensor:
    """`_get_weight_norm`: of every row of the weight with the update added."""
    t = layer.t
    weight = detached(layer.weight) + ops.scale(t, lora_weight)
    return vector_norm(t, weight, weight.shape[:1])
