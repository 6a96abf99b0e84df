"""LoHa and LoKr: the update is materialised, [out, in].

Symbols: R rank.

Source: peft/tuners/{loha,lokr}/layer.py, peft/tuners/lycoris_utils.py (PEFT 0.21.2).

Known limits:
    `rank_dropout` and `module_dropout` are 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import autocast_mm, mm


def loha(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(x, (w1_a @ w1_b) * (w2_a @ w2_b) * scaling)`."""
    result = layer.base(x)
    result = result + _applied(layer, x, hadamard(layer))
    return ops.to(layer.t, result, x.dtype)


def lokr(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(x, kron(w1, w2) * scaling)`."""
    result = layer.base(x)
    result = result + _applied(layer, x, kronecker(layer))
    return ops.to(layer.t, result, x.dtype)


def _applied(layer: AdaptedLayer, x: Tensor, delta: Tensor) -> Tensor:
    x = ops.to(layer.t, x, delta.dtype)
    return layer.t.matmul(x, delta, None)


def hadamard(layer: AdaptedLayer) -> Tensor:
    """`HadaWeight.forward`: an autograd Function, whose products are not kept."""
    t = layer.t
    factors = tuple(layer[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    outer, t.grad_enabled = t.grad_enabled, False
    delta = ops.scale(t, autocast_mm(t, factors[0], factors[1]) * autocast_mm(t, factors[2], factors[3]))
    t.grad_enabled = outer
    node = t.record("HadaWeight", factors, factors, _hadamard_backward, tuple((f.shape, f.dtype) for f in factors))
    return t.view(Tensor(t, delta.shape, delta.dtype, delta.storage, node), layer.weight.shape)


def _hadamard_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    meta = cast(tuple[tuple[Shape, DType], ...], node.meta)
    shapes = [shape for shape, _ in meta]
    w1a, w1b, w2a, w2b = (Tensor(tape, shape, dtype, None) for shape, dtype in meta)
    # The call from Python keeps the gradient it was given until it returns.
    scaled = ops.scale(tape, grad)
    product = mm(tape, w2a, w2b)
    temp = scaled * product
    del product
    grads = [tape.new(shapes[0], temp.dtype, "mm"), tape.new(shapes[1], temp.dtype, "mm")]
    product = mm(tape, w1a, w1b)
    following = scaled * product
    del product
    temp = following
    del following
    grads += [tape.new(shapes[2], temp.dtype, "mm"), tape.new(shapes[3], temp.dtype, "mm")]
    return grads


def kronecker(layer: AdaptedLayer) -> Tensor:
    """`make_kron`: the Kronecker product of the factors, scaled."""
    t = layer.t
    w1 = layer["lokr_w1"] if layer.has("lokr_w1") else autocast_mm(t, layer["lokr_w1_a"], layer["lokr_w1_b"])
    w2 = layer["lokr_w2"] if layer.has("lokr_w2") else autocast_mm(t, layer["lokr_w2_a"], layer["lokr_w2_b"])
    (a, b), (c, d) = w1.shape, w2.shape
    product = t.view(w1, (a, 1, b, 1)) * t.view(w2, (1, c, 1, d))
    return t.view(ops.scale(t, t.view(product, (a * c, b * d))), layer.weight.shape)
