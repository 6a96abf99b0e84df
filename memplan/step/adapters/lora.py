"""LoRA on a linear layer, and DoRA.

Symbols: R rank.

Source: peft/tuners/lora/{layer,bnb,variants,dora}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.dtypes import DType
from memplan.quantization import stored_tensors
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Storage, Tensor
from memplan.step.weight_ops import detached, div, mm, transposed, vector_norm


def lora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + lora_B(lora_A(dropout(x))) * scaling`."""
    return _apply(layer, x, _plain)


def dora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """LoRA with the direction and the magnitude of the weight apart."""
    return _apply(layer, x, _dora)


def _apply(layer: AdaptedLayer, x: Tensor, update: Callable[[AdaptedLayer, Tensor, Tensor], Tensor]) -> Tensor:
    """Over bitsandbytes 4-bit results are cloned; x is cast, and the update cast back, only without autocast."""
    t, wanted = layer.t, layer["lora_A"].dtype
    result = layer.base(x)
    dtype = result.dtype
    if not layer.is_quantized:
        x = ops.to(t, x, wanted)
        result = update(layer, x, result)  # the base layer's result goes before the sum is cast
        return ops.to(t, result, dtype)
    if layer.is_4bit:
        result = ops.clone(t, result)
    if t.settings.autocast is None:
        x = ops.to(t, x, wanted)
    if update is _plain:
        output = _factors(layer, x)
        if t.settings.autocast is None:
            output = ops.to(t, output, dtype)
        result = result + output  # bnb.py holds the update until it returns, so the base layer's result goes first
        return result  # noqa: RET504
    result = update(layer, x, result)
    return result if t.settings.autocast is not None else ops.to(t, result, dtype)


def _plain(layer: AdaptedLayer, x: Tensor, result: Tensor) -> Tensor:
    return result + _factors(layer, x)


def _factors(layer: AdaptedLayer, x: Tensor) -> Tensor:
    dropped = ops.dropout(layer.t, x, layer.option("dropout"))
    return ops.scale(layer.t, layer.linear(layer.linear(dropped, "lora_A"), "lora_B"))


def _dora(layer: AdaptedLayer, x: Tensor, result: Tensor) -> Tensor:
    """`DoraLinearVariant.forward`."""
    base_result: Tensor | None = result
    if layer.option("dropout"):
        x = ops.dropout(layer.t, x, layer.option("dropout"))
        base_result = None
    return result + _dora_update(layer, x, base_result)


def _dora_update(layer: AdaptedLayer, x: Tensor, base_result: Tensor | None) -> Tensor:
    """`DoraLinearLayer.forward`."""
    t = layer.t
    lora_weight = ops.to(t, _lora_weight(layer), x.dtype)
    weight = ops.to(t, layer.base_weight(), x.dtype)
    weight_norm = _weight_norm(layer, weight, detached(lora_weight))
    scale = t.view(div(t, layer["lora_magnitude_vector"], weight_norm), (1, *weight_norm.shape))
    lora_result = layer.linear(layer.linear(x, "lora_A"), "lora_B")
    if base_result is None:
        base_result = t.matmul(x, weight, None)
    elif layer.bias is not None:
        base_result = ops.sub(t, base_result, layer.bias)
    return ops.add_scalar(t, scale) * base_result + ops.scale(t, scale * lora_result)


def _lora_weight(layer: AdaptedLayer) -> Tensor:
    a = layer["lora_A"]
    x_eye = layer.t.new((a.shape[1], a.shape[1]), a.dtype, "eye")
    return transposed(layer.t, layer.linear(layer.linear(x_eye, "lora_A"), "lora_B"))


def _weight_norm(layer: AdaptedLayer, weight: Tensor, lora_weight: Tensor) -> Tensor:
    t = layer.t
    weight = weight + ops.scale(t, lora_weight)
    return ops.to(t, vector_norm(t, weight, weight.shape[:1]), weight.dtype)


def dora_creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`DoraLinearLayer.update_layer`: the norm of the weight's rows; a 4-bit layer is copied whole before."""
    t, a, b = layer.t, layer["lora_A"], layer["lora_B"]
    if a.dtype is DType.FLOAT16:
        a, b = ops.to(t, a, DType.FLOAT32), ops.to(t, b, DType.FLOAT32)
    copied = _copy_of_4bit_layer(layer) if layer.is_4bit else []
    weight = layer.base_weight()
    lora_weight = mm(t, b, a)
    if layer["lora_A"].dtype is DType.FLOAT16:
        lora_weight = ops.to(t, lora_weight, DType.FLOAT16)
    norm = _weight_norm(layer, weight, lora_weight)
    del copied
    return {"lora_magnitude_vector": norm}


def _copy_of_4bit_layer(layer: AdaptedLayer) -> list[Storage]:
    """`deepcopy(base_layer)`: weight and bias, and the quantization state as held by the weight and by the module."""
    assert layer.site.quantized is not None
    stored = stored_tensors(layer.site.quantized, layer.weight.shape, layer.weight.dtype)
    states = [tensor for tensor in stored if tensor.role == "state"]
    copied = [*(tensor for tensor in stored if tensor.role != "state"), *states, *states]
    made = [layer.t.alloc(tensor.shape, tensor.dtype, f"deepcopy: {tensor.name}") for tensor in copied]
    if layer.bias is not None:
        made.append(layer.t.alloc(layer.bias.shape, layer.bias.dtype, "deepcopy: bias"))
    return made
