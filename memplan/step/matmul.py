"""Batched products of [B, A, M, N] tensors, grouped heads, softmax: what unfused attention is made of.

Symbols: B micro batch, A attention heads, K key/value heads, S query length, T key length, D head size.

Sources: torch 2.13 aten/src/ATen/native/LinearAlgebra.cpp (`matmul` folds to `bmm` and copies operands that cannot be
viewed as [B·A, M, N]), tools/autograd/derivatives.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.tensor import Node, Shape, Tape, Tensor


def contiguous(tape: Tape, x: Tensor, op: str = "clone") -> Tensor:
    """`x` with its heads outermost in memory; a copy where it is laid out by token, of which a single one is both."""
    if not x.by_token or (not tape.grad_enabled and x.shape[2] == 1):
        return x
    node = tape.record(op, (x,), (), _pass)
    return tape.new(x.shape, x.dtype, op, node)


def _pass(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    return (Tensor(tape, grad.shape, grad.dtype, grad.storage, None, is_view=True),)


def _batches(tape: Tape, x: Tensor) -> Tensor:
    """[B, A, M, N] reshaped to [B·A, M, N] for `bmm`: a view of a single sequence, whatever its layout."""
    return x if x.shape[0] == 1 else contiguous(tape, x)


def matmul(tape: Tape, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """`torch.matmul` of two 4-D tensors with the result `shape`; saves each operand that the other's gradient needs."""
    a, b = _batches(tape, a), _batches(tape, b)
    saved = (b if a.node is not None else None, a if b.node is not None else None)
    node = tape.record("bmm", (a, b), saved, _bmm_backward, (a.shape, b.shape, a.dtype))
    return tape.new(shape, a.dtype, "bmm", node)


def _bmm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, b_shape, dtype = cast(tuple[Shape, Shape, DType], node.meta)
    kept = node.all_stored()
    grad_a = grad_b = None
    if node.edges[1] is not None:
        grad_b = tape.new(b_shape, dtype, "bmm")
        grad_b.is_view = True
    if node.edges[0] is not None:
        grad_a = tape.new(a_shape, dtype, "bmm")
        grad_a.is_view = True
    del kept
    return (grad_a, grad_b)


def repeat_kv(tape: Tape, x: Tensor, heads: int) -> Tensor:
    """[B, K, T, D] repeated to [B, A, T, D] by expand and reshape: a copy; backward sums over the repeats."""
    if x.shape[1] == heads:
        return x
    shape = (x.shape[0], heads, *x.shape[2:])
    node = tape.record("clone", (x,), (), _repeat_backward, (x.shape,))
    return tape.new(shape, x.dtype, "clone", node)


def expand_kv(tape: Tape, x: Tensor, heads: int) -> Tensor:
    """Transformers' `repeat_kv`: `repeat_kv`, and of a single head a view, whose heads a batched product has to copy."""
    if x.shape[1] != 1 or heads == 1:
        return repeat_kv(tape, x, heads)
    node = tape.record("expand", (x,), (), _repeat_backward, (x.shape,))
    return Tensor(tape, (x.shape[0], heads, *x.shape[2:]), x.dtype, x.storage, node, is_view=True, by_token=True)


def _repeat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def transpose_last(tape: Tape, x: Tensor) -> Tensor:
    """[B, A, T, D] viewed as [B, A, D, T]."""
    return tape.view(x, (*x.shape[:2], x.shape[3], x.shape[2]), by_token=x.by_token)


def merge_heads(tape: Tape, x: Tensor) -> Tensor:
    """`x.transpose(1, 2).contiguous()`: [B, A, S, D] copied to [B, S, A, D]; the gradient comes back laid out by token.

    A single token is contiguous as it is.
    """
    shape = (x.shape[0], x.shape[2], x.shape[1], x.shape[3])
    if not tape.grad_enabled and x.shape[2] == 1:
        return Tensor(tape, shape, x.dtype, x.storage, is_view=True)
    node = tape.record("clone", (x,), (), _merge_backward, (x.shape,))
    return tape.new(shape, x.dtype, "clone", node)


def _merge_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=True),)


def require_contiguous_gradient(tape: Tape, x: Tensor) -> Tensor:
    """The [B, A, M, N] view of a bmm's result: its gradient is copied as `_batches` copies."""
    node = tape.record("_unsafe_view", (x,), (), _contiguous_backward, (x.shape,))
    return Tensor(tape, x.shape, x.dtype, x.storage, node)


def _contiguous_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    if grad.by_token and shape[0] != 1:
        grad = tape.new(shape, grad.dtype, "clone")
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


def softmax(tape: Tape, x: Tensor, dtype: DType) -> Tensor:
    """`F.softmax(x, dim=-1, dtype=...)`: saves its result.

    float16 to float32 is done inside the kernel (`half_to_float`); bfloat16 is cast first (SoftMax.cpp, `softmax`).
    """
    if x.dtype is DType.FLOAT16 and dtype is DType.FLOAT32:
        out = tape.alloc(x.shape, dtype, "_softmax")
        node = tape.record("_softmax", (x,), (out,), softmax_backward, (x.shape, x.dtype))
        return Tensor(tape, x.shape, dtype, out, node)
    x = ops.to(tape, x, dtype)
    out = tape.alloc(x.shape, dtype, "_softmax")
    node = tape.record("_softmax", (x,), (out,), softmax_backward, (x.shape, x.dtype))
    return Tensor(tape, x.shape, dtype, out, node)


def softmax_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """`_softmax_backward_data`: the kernel first forms `grad * output` (cuda/SoftMax.cu, `softmax_backward_cuda_out`)."""
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "_softmax_backward_data")
    product = tape.alloc(grad.shape, grad.dtype, "_softmax_backward_data: grad * output")
    del product, kept
    return (out,)


def dense(tape: Tape, x: Tensor) -> Tensor:
    """A copy that is laid out as its shape says, where the kernel laid its result out otherwise."""
    node = tape.record("clone", (x,), (), _dense_backward, (x.shape,))
    return tape.new(x.shape, x.dtype, "clone", node)


def _dense_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)
