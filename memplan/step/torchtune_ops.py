"""What torchtune's modules compute that transformers' compute otherwise: RMSNorm and rotary embeddings.

Symbols: B micro batch, S sequence length, A heads, D head size, H hidden size.

Sources: torchtune 0.6.1 modules/rms_norm.py, modules/position_embeddings.py (`RotaryPositionalEmbeddings`),
models/{qwen2,phi3}/_position*_embeddings.py; torch 2.13 aten/src/ATen/native/layer_norm.cpp (`rms_norm_composite`).

Known limits:
    Positions count from 0 in every row. What CUDA's fused RMSNorm allocates inside its backward for very long batches of narrow
    rows is left out, as for layer norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps, rotate_half
from memplan.step.layers import LayerOps
from memplan.step.split import concatenate, narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor


def rms_norm(t: LayerOps, name: str, x: Tensor) -> Tensor:
    """`F.rms_norm(x.float(), weight).to(x.dtype)`: one kernel where the weight is float32 too, op by op otherwise."""

    def forward(t: LayerOps, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if t.declaring:
            t.declare(Module(t.path, ModuleKind.NORM, (Parameter("weight", (size,)),), class_name="RMSNorm"))
        weight = t.parameter(t.path, "weight", (size,))
        upcast = ops.to(t, x, DType.FLOAT32)
        normed = (_fused if weight.dtype is DType.FLOAT32 else _op_by_op)(t, upcast, weight)
        del upcast
        return ops.to(t, normed, x.dtype)

    return t.call(name, forward, x)


def _op_by_op(t: Tape, x: Tensor, weight: Tensor) -> Tensor:
    squares = ops.pow2(t, x)
    mean = ops.mean_last(t, squares)
    reciprocal = ops.rsqrt(t, _add_scalar_in_place(t, mean))
    del mean, squares
    normed = x * reciprocal
    normed = normed * weight  # promoted inside the kernel; the product without the weight goes now
    return normed  # noqa: RET504


def _add_scalar_in_place(t: Tape, x: Tensor) -> Tensor:
    return Tensor(t, x.shape, x.dtype, x.storage, t.record("add_", (x,), (), _pass))


def _pass(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    return (grad,)


def _fused(t: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """`_fused_rms_norm`: saves its input, its weight and the reciprocal deviation of every row."""
    out = t.alloc(x.shape, x.dtype, "_fused_rms_norm")
    deviation = t.alloc((*x.shape[:-1], 1), DType.FLOAT32, "_fused_rms_norm")
    node = t.record("_fused_rms_norm", (x, weight), (x, weight, deviation), _fused_backward, (x.shape, x.dtype))
    return Tensor(t, x.shape, x.dtype, out, node)


def _fused_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    grads = [
        tape.new(size, dtype, "_fused_rms_norm_backward") if edge is not None else None
        for size, edge in zip((shape, shape[-1:]), node.edges, strict=True)
    ]
    del kept
    return grads


def rotate_pairs(t: AttentionOps, x: Tensor) -> Tensor:
    """Pairs of neighbours of x [B, S, A, D] rotated in float32; the table is a buffer, so products save no more than views."""
    half = (*x.shape[:-1], x.shape[-1] // 2)
    pairs = t.view(ops.to(t, x, DType.FLOAT32), (*half, 2))
    cos = sin = _row(t, x.shape[1], half[-1])

    def part() -> Tensor:
        return narrow(t, pairs, half, "select")

    rotated = concatenate(t, (ops.sub(t, part() * cos, part() * sin), part() * cos + part() * sin), pairs.shape)
    return ops.to(t, t.view(rotated, x.shape), x.dtype)


def rotate_halves(t: AttentionOps, x: Tensor) -> Tensor:
    """Both halves of each head of x [B, S, A, D] rotated in its own type, to which the table's rows are cast (Qwen2)."""
    row = _row(t, x.shape[1], x.shape[-1])
    cos, sin = ops.to(t, row, x.dtype), ops.to(t, row, x.dtype)
    rotated = rotate_half(t, x)
    return (x * cos) + (rotated * sin)


def rotate_halves_in_float(t: AttentionOps, x: Tensor) -> Tensor:
    """As `rotate_halves`, with the table in float32, to which every product is promoted (Phi-3)."""
    cos = sin = _row(t, x.shape[1], x.shape[-1])
    rotated = rotate_half(t, x)
    out = (x * cos) + (rotated * sin)
    return ops.to(t, out, x.dtype)


def _row(t: Tape, length: int, width: int) -> Tensor:
    """The part of a rotary table for the batch's positions: [1, S, 1, width], in the buffer."""
    return Tensor(t, (1, length, 1, width), DType.FLOAT32, None)
