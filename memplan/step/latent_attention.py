"""What multi-head latent attention is made of: interleaved rotation, keys written part by part, values of their own size.

Symbols: B micro batch, S sequence length, A attention heads, R rotary size, V value size, Q query and key size.

Sources: transformers 5.23 models/{deepseek_v2,deepseek_v3}/modeling_*.py; torch 2.13 torch/csrc/autograd/functions/tensor.cpp
(`CopySlices`), tools/autograd/derivatives.yaml (`view_as_complex`, `view_as_real`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import AttentionOps
from memplan.step.split import concatenate, narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor


def rotate_interleaved(t: AttentionOps, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary_pos_emb_interleave` (DeepSeek-V3) on x [B, A, S, R]: even and odd elements are halves of the result."""
    half = (*x.shape[:-1], x.shape[-1] // 2)
    cos, sin = (narrow(t, table, (*table.shape[:-1], half[-1])) for table in (cos, sin))
    even, odd = narrow(t, x, half), narrow(t, x, half)
    first = ops.sub(t, even * cos, odd * sin)
    second = (odd * cos) + (even * sin)
    return concatenate(t, (first, second), x.shape)


def complex_table(t: AttentionOps, size: int) -> Tensor:
    """`DeepseekV2RotaryEmbedding.forward`: unit complex numbers [1, S, R/2], made without gradients."""
    outer, t.grad_enabled = t.grad_enabled, False
    shape = (1, t.sequence, size // 2)
    positions = t.new((1, t.sequence, 1), DType.FLOAT32, "_to_copy")
    frequencies = t.new(shape, DType.FLOAT32, "mul")
    del positions
    ones = t.new(shape, DType.FLOAT32, "ones_like")
    # A complex64 element is two float32.
    polar = t.new((*shape, 2), DType.FLOAT32, "polar")
    del ones
    table = ops.scale(t, polar)
    del frequencies, polar
    t.grad_enabled = outer
    return table


def rotate_complex(t: AttentionOps, x: Tensor, table: Tensor) -> Tensor:
    """`apply_rotary_emb` (DeepSeek-V2) on x [B, A, S, R]: pairs as complex numbers in float32, times the table."""
    pairs = (*x.shape[:-1], x.shape[-1] // 2, 2)
    rotated = t.view(ops.to(t, x, DType.FLOAT32), pairs) * table
    return ops.to(t, t.view(rotated, x.shape), x.dtype)


def expand_heads(t: Tape, x: Tensor, heads: int) -> Tensor:
    """[B, 1, S, R] expanded to [B, A, S, R], a view; the gradient is summed over the heads."""
    node = t.record("expand", (x,), (), _sum_back, (x.shape,))
    return Tensor(t, (x.shape[0], heads, *x.shape[2:]), x.dtype, x.storage, node, is_view=True)


def _sum_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def write_parts(t: Tape, parts: Sequence[Tensor]) -> Tensor:
    """`new_empty` and a `copy_` into its last dimension for each part, in place; every copy is a `CopySlices` node."""
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    out = t.new(shape, parts[0].dtype, "new_empty")
    for part in parts:
        node = t.record("copy_slices", (out, part), (), _copy_slices_backward, (shape, part.shape))
        out = Tensor(t, shape, out.dtype, out.storage, node)
    return out


def _copy_slices_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    whole, part = cast(tuple[Shape, Shape], node.meta)
    result = tape.new(whole, grad.dtype, "copy_slices")
    slice_gradient = tape.new(part, grad.dtype, "clone")
    overwritten = tape.alloc(part, grad.dtype, "zeros")
    del overwritten
    return (
        result if node.edges[0] is not None else None,
        slice_gradient if node.edges[1] is not None else None,
    )
