"""Ops on weights: products of factors, norms, quotients; what adapters build their updates with.

One function per ATen op, named after it. Sources: tools/autograd/derivatives.yaml and FunctionsManual.cpp of torch 2.13;
every rule is held against a trace of the real op.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.tensor import Node, Shape, Tape, Tensor

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps


def transposed(tape: Tape, x: Tensor) -> Tensor:
    """`x.T` of a matrix: a view."""
    return tape.view(x, (x.shape[1], x.shape[0]))


def detached(x: Tensor) -> Tensor:
    """`x.detach()`: the storage without the graph."""
    return Tensor(x.tape, x.shape, x.dtype, x.storage, None, True, x.by_token)


def mm(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of matrices, or of batches of them: saves each operand that the other's gradient needs."""
    op = "mm" if len(a.shape) == 2 else "bmm"
    saved = (b if a.node is not None else None, a if b.node is not None else None)
    node = tape.record(op, (a, b), saved, _mm_backward, (a.shape, b.shape, a.dtype, op))
    return tape.new((*a.shape[:-1], b.shape[-1]), a.dtype, op, node)


def _mm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, b_shape, dtype, op = cast(tuple[Shape, Shape, DType, str], node.meta)
    kept = node.all_stored()
    left = tape.new(a_shape, dtype, op) if node.edges[0] is not None else None
    right = tape.new(b_shape, dtype, op) if node.edges[1] is not None else None
    del kept
    return (left, right)


def autocast_mm(t: LayerOps, a: Tensor, b: Tensor) -> Tensor:
    """`mm` under the step's autocast; what is cast lives until the product is there, as its caller holds it."""
    autocast = t.settings.autocast
    if autocast is None:
        return mm(t, a, b)
    right = t.cast_weight(b, autocast)
    return mm(t, t.cast_weight(a, autocast), right)


def matmul(t: LayerOps, x: Tensor, w: Tensor) -> Tensor:
    """`x @ w` of x [..., in] and w [in, out] under the step's autocast; what is cast lives as long, as its caller holds it."""
    autocast = t.settings.autocast
    right = w if autocast is None else t.cast_weight(w, autocast)
    left = x if autocast is None else t.cast_weight(x, autocast)
    saved = (left if right.node is not None else None, right if left.node is not None else None)
    node = t.record("mm", (left, right), saved, _matmul_backward, (left.shape, right.shape, left.dtype))
    return t.new((*left.shape[:-1], right.shape[1]), left.dtype, "mm", node)


def _matmul_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, w_shape, dtype = cast(tuple[Shape, Shape, DType], node.meta)
    kept = node.all_stored()
    grad_x = grad_w = None
    if node.edges[0] is not None:
        grad_x = tape.new(x_shape, dtype, "mm")
        grad_x.is_view = len(x_shape) > 2  # computed over [rows, in] and viewed back
    if node.edges[1] is not None:
        grad_w = tape.new(w_shape, dtype, "mm")
    del kept
    return (grad_x, grad_w)


def vector_norm(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """`torch.linalg.norm(x, dim=...)` of a tensor that needs no gradient."""
    assert x.node is None
    return tape.new(shape, x.dtype, "linalg_vector_norm")


def div(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a / b`: saves the divisor, and the dividend where the divisor needs a gradient."""
    saved = (a if b.node is not None else None, b)
    node = tape.record("div", (a, b), saved, _div_backward, (a.shape, a.dtype, b.shape, b.dtype))
    return tape.new(ops.broadcast(a.shape, b.shape), ops.promote(a.dtype, b.dtype), "div", node)


def _div_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, a_dtype, b_shape, b_dtype = cast(tuple[Shape, DType, Shape, DType], node.meta)
    kept = node.all_stored()
    grads: list[Tensor | None] = [None, None]
    if node.edges[1] is not None:  # -grad * ((a / b) / b)
        wide = ops.promote(a_dtype, b_dtype)
        quotient = tape.alloc(grad.shape, wide, "div")
        twice = tape.alloc(grad.shape, wide, "div")
        negative = tape.alloc(grad.shape, grad.dtype, "neg")
        grads[1] = tape.new(grad.shape, grad.dtype, "mul")
        del negative, twice, quotient
    if node.edges[0] is not None:
        grads[0] = tape.new(grad.shape, grad.dtype, "div")
    del kept  # what a recomputation made for this node goes before the engine's `validate_outputs`
    return ops.fitted(tape, grads, ((a_shape, a_dtype), (b_shape, b_dtype)))


def norm(tape: Tape, x: Tensor, shape: Shape) -> Tensor:
    """`x.norm(...)` of a tensor that is trained, [*shape]: saves its input and its result."""
    out = tape.alloc(shape, x.dtype, "linalg_vector_norm")
    node = tape.record("linalg_vector_norm", (x,), (x, out), _norm_backward, (x.shape, x.dtype, shape))
    return Tensor(tape, shape, x.dtype, out, node)


def _norm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, norms = cast(tuple[Shape, DType, Shape], node.meta)
    kept = node.all_stored()
    quotient = tape.alloc(shape, dtype, "div")
    mask = tape.alloc(norms, DType.BOOL, "eq")
    out = tape.new(shape, dtype, "mul")
    del mask, quotient, kept
    return (out,)


def repeated(tape: Tape, x: Tensor, shape: Shape, op: str = "repeat") -> Tensor:
    """`x` copied into the larger `shape`; backward sums over the repeats."""
    node = tape.record(op, (x,), (), _repeated_backward, (x.shape, x.dtype))
    return tape.new(shape, x.dtype, op, node)


def _repeated_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "sum"),)


def stack(tape: Tape, parts: Sequence[Tensor], shape: Shape) -> Tensor:
    """`torch.stack(parts)` of the given result shape; each part's gradient is a view of the whole one."""
    node = tape.record("stack", tuple(parts), (), _stack_backward, tuple(part.shape for part in parts))
    return tape.new(shape, parts[0].dtype, "stack", node)


def _stack_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shapes = cast(tuple[Shape, ...], node.meta)
    return [Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True) for shape in shapes]
