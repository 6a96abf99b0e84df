"""VB-LoRA: LoRA's factors put together from a bank of vectors that all layers share.

Symbols: r rank, n vectors of length v, k of them mixed, in and out the layer's sizes.

Source: peft/tuners/vblora/layer.py (PEFT 0.21.2); torch 2.13 tools/autograd/derivatives.yaml (`topk`, `index`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.matmul import softmax
from memplan.step.split import copy
from memplan.step.tensor import Node, Shape, Tape, Tensor


def vblora(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(F.linear(dropout(x), A), B)`."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    a, b = _factors(layer)
    x = ops.to(t, x, layer["vblora_vector_bank"].dtype)
    result = result + t.matmul(t.matmul(ops.dropout(t, x, layer.option("dropout")), a, None), b, None)
    return ops.to(t, result, previous)


def _factors(layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    t = layer.t
    logits_a, logits_b = layer["vblora_logits_A"], layer["vblora_logits_B"]
    if t.training:  # `vblora_logits_A[0, 0].isinf().any()`
        infinite = t.alloc(logits_a.shape[-1:], DType.BOOL, "isinf")
        t.alloc((), DType.BOOL, "any")
        del infinite
    outputs, inputs = layer.weight.shape
    rank = logits_a.shape[0]
    a = t.view(_low_rank_matrix(layer, logits_a), (rank, inputs))
    mixed = _low_rank_matrix(layer, logits_b)
    b = copy(t, mixed, (outputs, rank))
    return a, b


def _low_rank_matrix(layer: AdaptedLayer, logits: Tensor) -> Tensor:
    """The k largest logits' vectors, mixed: [..., v]."""
    t, bank, count = layer.t, layer["vblora_vector_bank"], layer.option("topk")
    largest, indices = _topk(t, logits, count)
    # Autocast has softmax in its list of float32.
    weights = softmax(t, largest, DType.FLOAT32 if t.settings.autocast is not None else largest.dtype)
    shape = (*weights.shape, bank.shape[1])
    mixed = t.view(weights, (*weights.shape, 1)) * gathered(t, bank, indices, shape)
    return _sum_last_but_one(t, mixed)


def _topk(t: Tape, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], count)
    out = t.alloc(shape, x.dtype, "topk")
    indices = t.new(shape, DType.INT64, "topk")
    node = t.record("topk", (x,), (indices,), _zeros_backward, (x.shape, x.dtype))
    return Tensor(t, shape, x.dtype, out, node), indices


def gathered(t: Tape, x: Tensor, indices: Tensor, shape: Shape) -> Tensor:
    """`x[indices]` of the given result shape: saves the indices; backward adds into zeros as large as `x`."""
    node = t.record("index", (x,), (indices,), _zeros_backward, (x.shape, x.dtype))
    return t.new(shape, x.dtype, "index", node)


def _zeros_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "new_zeros")
    del kept
    return (out,)


def _sum_last_but_one(t: Tape, x: Tensor) -> Tensor:
    """`x.sum(-2)`; its gradient is expanded, a view."""
    node = t.record("sum", (x,), (), _expand_back, (x.shape,))
    return t.new((*x.shape[:-2], x.shape[-1]), x.dtype, "sum", node)


def _expand_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)
