"""Liger's layers: norms, gated MLP and rotary embedding as autograd functions that keep little and write in place.

Symbols: B micro batch, S sequence length, A attention heads, D head size, H hidden size, I intermediate size.

Sources: liger-kernel 0.8.5 ops/rms_norm.py, ops/swiglu.py, ops/rope.py. What the Triton kernels do allocates nothing.

Known limits:
    RMSNorm with Llama's casting, in place. The norms' weight gradient is summed in a row for each multiprocessor of the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step.autograd import part_backward
from memplan.step.tensor import Node, Shape, Tape, Tensor


def rms_norm(t: Tape, x: Tensor, weight: Tensor, multiprocessors: int) -> Tensor:
    """`LigerRMSNormFunction`: saves its input and the reciprocal deviation of every row, in float32."""
    out = t.alloc(x.shape, x.dtype, "empty")
    rows = x.shape[0]
    for size in x.shape[1:-1]:
        rows = rows * size
    deviation = t.alloc((rows,), DType.FLOAT32, "empty")
    meta = (x.shape, weight.shape, weight.dtype, multiprocessors)
    node = t.record("LigerRMSNorm", (x, weight), (x, weight, deviation), _rms_norm_backward, meta)
    return Tensor(t, x.shape, x.dtype, out, node)


def _rms_norm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """The input's gradient takes the place of the output's."""
    shape, w_shape, w_dtype, multiprocessors = cast(tuple[Shape, Shape, DType, int], node.meta)
    kept = node.all_stored()
    grad_w = None
    if node.edges[1] is not None:
        partial = tape.alloc((multiprocessors, *w_shape), DType.FLOAT32, "empty")
        grad_w = tape.new(w_shape, DType.FLOAT32, "sum")
        if w_dtype is not DType.FLOAT32:
            grad_w = tape.new(w_shape, w_dtype, "_to_copy")
        del partial
    grad_x = Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True)
    del kept
    return (grad_x if node.edges[0] is not None else None, grad_w)


def silu_mul(t: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """`LigerSiLUMulFunction`: saves both inputs, in whose place backward writes their gradients."""
    out = t.alloc(gate.shape, gate.dtype, "empty_like")
    node = t.record("LigerSiLUMul", (gate, up), (gate, up), _silu_mul_backward, (gate.shape, gate.dtype))
    return Tensor(t, gate.shape, gate.dtype, out, node)


def _silu_mul_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    gate, up = node.stored(0), node.stored(1)
    return tuple(
        Tensor(tape, shape, dtype, storage, None, is_view=True) if edge is not None else None
        for storage, edge in zip((gate, up), node.edges, strict=True)
    )


def rope(t: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`LigerRopeFunction` on q [B, A, S, D] and k, laid out by token: both are rotated in place."""
    assert q.by_token
    assert k.by_token
    waiting: dict[int, Tensor] = {}
    whole = t.record("LigerRope", (q, k), (cos, sin), _rope_backward, (waiting, q.shape, k.shape))
    joint = Tensor(t, q.shape, q.dtype, q.storage, whole)
    rotated = []
    for place, x in enumerate((q, k)):
        node = t.record("LigerRope", (joint,), (), part_backward, (waiting, place)) if x.node is not None else None
        rotated.append(Tensor(t, x.shape, x.dtype, x.storage, node, is_view=True, by_token=True))
    return rotated[0], rotated[1]


def _rope_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    waiting, *shapes = cast(tuple[dict[int, Tensor], Shape, Shape], node.meta)
    del grad
    found: list[Tensor | None] = []
    for place, shape in enumerate(shapes):
        given = waiting.get(place)
        if given is not None and not given.by_token:
            given = tape.new(shape, given.dtype, "clone")
        found.append(
            Tensor(tape, shape, given.dtype, given.storage, None, is_view=True, by_token=True)
            if given is not None
            else None
        )
        del given
    waiting.clear()
    return tuple(found)
