"""RoAd: the output rotated and scaled in pairs.

Symbols: B micro batch, S sequence length, out the layer's width, g group size.

Source: peft/tuners/road/{layer,bnb}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import copy, narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor, count_elements
from memplan.step.weight_ops import repeated, stack


def road(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result * first + rotated(result) * second`."""
    t = layer.t
    result = layer.base(x)
    dtype, wanted = result.dtype, layer["road_theta"].dtype
    if not layer.is_quantized:
        result = ops.to(t, result, wanted)
        result = _apply(layer, result)
        return ops.to(t, result, dtype)
    converts = t.settings.autocast is None
    if converts:
        result = ops.to(t, result, wanted)
    result = _apply(layer, result)
    if converts:  # the input is what bnb.py casts back
        x = ops.to(t, x, dtype)
    return result


def _apply(layer: AdaptedLayer, x: Tensor) -> Tensor:
    t, half = layer.t, layer.option("group_size") // 2
    first, second = _columns(layer)
    pairs = (count_elements(x.shape) // (2 * half), 2, half)
    grouped = t.view(x, pairs)
    x1 = narrow(t, grouped, (pairs[0], half), "select")
    x2 = narrow(t, grouped, (pairs[0], half), "select")
    rotated = t.view(stack(t, (ops.neg(t, x2), x1), pairs), x.shape)
    result = x * first + rotated * second
    del grouped, x1, x2, rotated, first, second
    return result


def _columns(layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    t, variant, group = layer.t, layer.option("variant"), layer.option("group_size")
    theta, alpha = layer["road_theta"], layer["road_alpha"]
    size = layer.weight.shape[0]
    if variant == "road_4":
        return _columns_of_four(layer, theta, alpha)
    if variant == "road_1":
        whole = (size // group, 2, group // 2)
        theta = t.view(repeated(t, theta, whole, "clone"), (size,))
        alpha = t.view(repeated(t, alpha, whole, "clone"), (size,))
    cosine, sine = _cos(t, theta), _sin(t, theta)
    return alpha * cosine, alpha * sine


def _columns_of_four(layer: AdaptedLayer, theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    t, group = layer.t, layer.option("group_size")
    size = layer.weight.shape[0]
    halves, part = (size // group, 2, group), (size // group, group)
    theta = t.view(theta, halves)
    cosine = t.view(_cos(t, narrow(t, theta, part, "select")), (size,))
    sine = t.view(_sin(t, narrow(t, theta, part, "select")), (size,))
    alpha = t.view(alpha, halves)
    alpha_1 = copy(t, narrow(t, alpha, part, "select"), (size,))
    alpha_2 = copy(t, narrow(t, alpha, part, "select"), (size,))
    return alpha_1 * cosine, alpha_2 * sine


def _cos(t: Tape, x: Tensor) -> Tensor:
    return _wave(t, x, "cos", ("sin", "neg"))


def _sin(t: Tape, x: Tensor) -> Tensor:
    return _wave(t, x, "sin", ("cos",))


def _wave(t: Tape, x: Tensor, op: str, slope: tuple[str, ...]) -> Tensor:
    """`op(x)`, whose slope is made by the ops `slope`, one after the other."""
    node = t.record(op, (x,), (x,), _wave_backward, (x.shape, x.dtype, slope))
    return t.new(x.shape, x.dtype, op, node)


def _wave_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, slope = cast(tuple[Shape, DType, tuple[str, ...]], node.meta)
    kept = node.all_stored()
    made = [tape.alloc(shape, dtype, op) for op in slope]
    out = tape.new(shape, dtype, "mul")
    while made:  # a C++ expression's temporaries go in reverse
        made.pop()
    del kept
    return (out,)
