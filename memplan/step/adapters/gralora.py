"""GraLoRA: LoRA in k x k blocks, with the ranks of a block spread over all blocks between A and B.

Symbols: B micro batch, S sequence length, r rank, k blocks, in and out the layer's sizes.

Source: peft/tuners/gralora/layer.py (PEFT 0.21.2); torch 2.13 aten/src/ATen/native/Linear.cpp (`einsum` permutes its operands
and multiplies them with bmm), autocast_mode.h (`einsum` is cast).
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import copy, permuted
from memplan.step.tensor import Tensor, count_elements
from memplan.step.weight_ops import mm


def gralora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result += scaling * blocks(dropout(x)) (+ scaling * B(A(dropout(x))))`."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    dtype = result.dtype
    output = _through_blocks(layer, x)
    result = ops.add_in_place(t, result, ops.scale(t, ops.to(t, output, dtype)))
    if layer.has("gralora_A_general"):
        dropout, wanted = layer.option("dropout"), layer["gralora_A"].dtype
        hybrid = layer.linear(
            layer.linear(ops.dropout(t, ops.to(t, x, wanted), dropout), "gralora_A_general"), "gralora_B_general"
        )
        result = ops.add_in_place(t, result, ops.scale(t, ops.to(t, hybrid, dtype)))
        result = ops.to(t, result, previous)
        del output, hybrid
        return result
    result = ops.to(t, result, previous)
    del output
    return result


def _through_blocks(layer: AdaptedLayer, x: Tensor) -> Tensor:
    t, a, b = layer.t, layer["gralora_A"], layer["gralora_B"]
    blocks, _, rank = a.shape
    rows = x.shape[:-1]
    count = count_elements(rows)
    mixed = _mixed(layer, _first(layer, ops.dropout(t, ops.to(t, x, a.dtype), layer.option("dropout"))))
    mixed = t.view(mixed, (blocks, count, rank))
    if t.settings.autocast is not None:
        b = t.cast_weight(b, t.settings.autocast)
    out = mm(t, mixed, b)
    del mixed
    width = blocks * b.shape[-1]
    return copy(t, out, (*rows, width)) if blocks > 1 else t.view(out, (*rows, width))


def _first(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """[k, B S, r]. Backward copies the gradient of the input back into the order of the input."""
    t, a = layer.t, layer["gralora_A"]
    blocks, size, _ = a.shape
    count = count_elements(x.shape[:-1])
    shape = (*x.shape[:-1], blocks, size)
    split = permuted(t, x, shape) if blocks > 1 else t.view(x, shape)
    autocast = t.settings.autocast
    if autocast is not None:
        split = ops.to(t, split, autocast)
        a = t.cast_weight(a, autocast)
    return mm(t, t.view(split, (blocks, count, size)), a)


def _mixed(layer: AdaptedLayer, x: Tensor) -> Tensor:
    t = layer.t
    blocks, count, rank = x.shape
    if blocks == 1:
        return x
    shape = (count, blocks, blocks, rank // blocks)
    return copy(t, permuted(t, x, shape), shape)
