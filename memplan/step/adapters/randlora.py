"""RandLoRA: frozen bases that all layers share, scaled by trained diagonals.

Symbols: r rank, n bases, small and large the lesser and the greater of the layer's sizes.

Source: peft/tuners/randlora/{layer,bnb}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import transposed


def randlora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(F.linear(dropout(x), inner), outer) * scaling`."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    if layer.is_quantized:
        return _on_quantized(layer, x, result)
    inner, outer = _scaled_bases(layer)
    x = ops.to(t, x, outer.dtype)
    dropout = layer.option("dropout")
    result = result + ops.scale(t, t.matmul(t.matmul(ops.dropout(t, x, dropout), inner, None), outer, None))
    return ops.to(t, result, previous)


def _on_quantized(layer: AdaptedLayer, x: Tensor, result: Tensor) -> Tensor:
    t = layer.t
    if layer.is_4bit:
        result = ops.clone(t, result)
    inner, outer = _scaled_bases(layer)
    converts, dtype = t.settings.autocast is None, result.dtype
    if converts:
        x = ops.to(t, x, outer.dtype)
    temporary = ops.dropout(t, ops.to(t, x, outer.dtype), layer.option("dropout"))
    output = t.matmul(t.matmul(temporary, inner, None), outer, None)
    if converts:
        output = ops.to(t, output, dtype)
    result = result + ops.scale(t, output)
    return ops.to(t, result, x.dtype)


def _scaled_bases(layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    """`get_scaled_bases`: what is applied first and what then, of the layer's part of both bases."""
    t, a, b = layer.t, layer["randlora_A"], layer["randlora_B"]
    rank, bases = layer["randlora_lambda"].shape
    outputs, inputs = layer.weight.shape
    small, large = sorted((inputs, outputs))
    flat = (large, bases * rank)
    update_b = t.view(b, flat)
    update_a = t.view(_unique_base(layer, t.view(a, (rank, 1, small))), (rank * bases, small))
    if small == inputs:
        return update_a, update_b
    return transposed(t, update_b), transposed(t, update_a)


def _unique_base(layer: AdaptedLayer, a: Tensor) -> Tensor:
    """`UniqueBaseGrad`: lambda * A * gamma, [r, n, small], an autograd Function that keeps its factors alone."""
    t, scale, gamma = layer.t, layer["randlora_lambda"], layer["randlora_gamma"]
    rank, bases = scale.shape
    outer, t.grad_enabled = t.grad_enabled, False
    product = t.view(scale, (rank, bases, 1)) * a * t.view(gamma, (1, *gamma.shape))
    t.grad_enabled = outer
    meta = (product.shape, a.dtype, scale.dtype, gamma.dtype)
    node = t.record("UniqueBaseGrad", (scale, gamma), (a, scale, gamma), _unique_base_backward, meta)
    return Tensor(t, product.shape, product.dtype, product.storage, node)


def _unique_base_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, *dtypes = cast(tuple[Shape, DType, DType, DType], node.meta)
    rank, bases, small = shape
    kept = node.all_stored()
    shapes = ((rank, 1, small), (rank, bases), (bases, small))
    casted = [
        tape.alloc(part, grad.dtype, "_to_copy")
        for part, dtype in zip(shapes, dtypes, strict=True)
        if dtype is not grad.dtype
    ]
    product = tape.alloc((rank, bases, small), grad.dtype, "mul")
    of_scale = tape.new(
        (rank, bases), grad.dtype, "bmm", by_token=True
    )  # permuted, so that it is copied and not stolen
    del product
    product = tape.alloc((bases, small, rank), grad.dtype, "mul")
    of_gamma = tape.new((bases, small), grad.dtype, "bmm")
    del product, casted, kept
    return (of_scale, of_gamma)
