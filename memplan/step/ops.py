"""Primitive ops: what each allocates, what autograd saves for it, what its backward allocates.

One function per ATen op, named after it. Sources: tools/autograd/derivatives.yaml and aten/src/ATen/native of torch 2.13;
every rule is held against a trace of the real op.

Known limits:
    Elementwise results are dense; a broadcast operand's gradient is summed by the engine (`sum_to_size`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from memplan.dtypes import DType
from memplan.step.tensor import Node, Shape, Tape, Tensor, count_elements

_WIDTH_ORDER = (
    DType.BOOL,
    DType.UINT8,
    DType.INT32,
    DType.INT64,
    DType.FLOAT16,
    DType.BFLOAT16,
    DType.FLOAT32,
    DType.FLOAT64,
)


def promote(a: DType, b: DType) -> DType:
    """Torch's result type of two tensors; bfloat16 with float16 gives float32."""
    if a is b:
        return a
    if {a, b} == {DType.BFLOAT16, DType.FLOAT16}:
        return DType.FLOAT32
    return max(a, b, key=_WIDTH_ORDER.index)


def broadcast(a: Shape, b: Shape) -> Shape:
    """The broadcast of two shapes."""
    if a == b:
        return a
    if len(a) < len(b):
        a, b = b, a
    padded = (1,) * (len(a) - len(b)) + b
    return tuple(y if x == 1 != y else x for x, y in zip(a, padded, strict=True))


def fit_gradient(tape: Tape, grad: Tensor, shape: Shape, dtype: DType) -> Tensor:
    """What the engine's `validate_outputs` does to a gradient: sum a broadcast away, cast to the input's dtype."""
    if grad.shape != shape and count_elements(grad.shape) != count_elements(shape):
        grad = tape.new(shape, grad.dtype, "sum")
    if grad.dtype is not dtype:
        grad = tape.new(shape, dtype, "_to_copy", by_token=grad.by_token)
    return grad


def fitted(tape: Tape, grads: list[Tensor | None], inputs: Sequence[tuple[Shape, DType]]) -> list[Tensor | None]:
    """`grads` as `validate_outputs` hands them on, one after the other: a gradient that was summed goes before the cast."""
    for position, (shape, dtype) in enumerate(inputs):
        given, grads[position] = [grads[position]], None
        if given[0] is not None:
            grads[position] = fit_gradient(tape, cast(Tensor, given.pop()), shape, dtype)
    return grads


# -- casts and elementwise --------------------------------------------------------------------------------


def to(tape: Tape, x: Tensor, dtype: DType) -> Tensor:
    """`x.to(dtype)`: nothing when it already is."""
    if x.dtype is dtype:
        return x
    node = tape.record("_to_copy", (x,), (), _to_backward, (x.shape, x.dtype))
    return tape.new(x.shape, dtype, "_to_copy", node, by_token=x.by_token)


def _to_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "_to_copy", by_token=grad.by_token),)


def add(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a + b`: saves nothing; the gradient is handed on, cast and summed where an operand was narrower."""
    dtype = promote(a.dtype, b.dtype)
    shape = broadcast(a.shape, b.shape)
    node = tape.record("add", (a, b), (), _add_backward, (a.shape, a.dtype, b.shape, b.dtype))
    return tape.new(shape, dtype, "add", node, by_token=a.by_token)


def _add_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, a_dtype, b_shape, b_dtype = cast(tuple[Shape, DType, Shape, DType], node.meta)
    left = fit_gradient(tape, grad, a_shape, a_dtype) if node.edges[0] is not None else None
    right = fit_gradient(tape, grad, b_shape, b_dtype) if node.edges[1] is not None else None
    return (left, right)


def add_in_place(tape: Tape, total: Tensor, other: Tensor, *, scaled: bool = False) -> Tensor:
    """`total.add_(other, alpha=...)`; a factor is multiplied into the gradient of `other`."""
    node = tape.record("add_", (total, other), (), _add_in_place_backward, (other.shape, other.dtype, scaled))
    return Tensor(tape, total.shape, total.dtype, total.storage, node)


def _add_in_place_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, scaled = cast(tuple[Shape, DType, bool], node.meta)
    right = None
    if node.edges[1] is not None:
        right = tape.new(grad.shape, grad.dtype, "mul") if scaled else grad
        right = fit_gradient(tape, right, shape, dtype)
    return (grad if node.edges[0] is not None else None, right)


def sub(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a - b`: like a sum, but the gradient of `b` is negated first."""
    meta = (a.shape, a.dtype, b.shape, b.dtype)
    node = tape.record("sub", (a, b), (), _sub_backward, meta)
    return tape.new(broadcast(a.shape, b.shape), promote(a.dtype, b.dtype), "sub", node, by_token=a.by_token)


def _sub_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, a_dtype, b_shape, b_dtype = cast(tuple[Shape, DType, Shape, DType], node.meta)
    grads: list[Tensor | None] = [grad if node.edges[0] is not None else None, None]
    if node.edges[1] is not None:
        grads[1] = tape.new(grad.shape, grad.dtype, "neg", by_token=grad.by_token)
    return fitted(tape, grads, ((a_shape, a_dtype), (b_shape, b_dtype)))


def mul(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a * b`: saves each operand that the other's gradient needs."""
    dtype = promote(a.dtype, b.dtype)
    shape = broadcast(a.shape, b.shape)
    saved_b = tape.packed(b, (a, b)) if a.node is not None else None  # autograd saves `other` first
    saved = (a if b.node is not None else None, saved_b)
    node = tape.record("mul", (a, b), saved, _mul_backward, (a.shape, a.dtype, b.shape, b.dtype))
    return tape.new(shape, dtype, "mul", node, by_token=a.by_token)


def _mul_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    a_shape, a_dtype, b_shape, b_dtype = cast(tuple[Shape, DType, Shape, DType], node.meta)
    kept = node.all_stored()
    grads: list[Tensor | None] = [None, None]
    for position in (1, 0):  # autograd computes the gradient of `other` first
        if node.edges[position] is not None:
            grads[position] = tape.new(grad.shape, grad.dtype, "mul", by_token=grad.by_token)
    del kept  # before the engine's `validate_outputs`: what a recomputation made for this node goes with its apply()
    return fitted(tape, grads, ((a_shape, a_dtype), (b_shape, b_dtype)))


def unary(tape: Tape, op: str, x: Tensor, *, save: str = "none", backward_op: str | None = None) -> Tensor:
    """An elementwise op with one input.

    Args:
        tape: the tape.
        op: its name in the receipt.
        x: the input.
        save: `input`, `output` or `none`: what its derivative needs.
        backward_op: name of the single kernel of its backward; by default `{op}_backward`.
    """
    meta = (x.shape, x.dtype, backward_op or f"{op}_backward")
    if save != "output":  # what is saved of the input is saved before the op runs
        node = tape.record(op, (x,), (x,) if save == "input" else (), _unary_backward, meta)
        return tape.new(x.shape, x.dtype, op, node, by_token=x.by_token)
    out = tape.alloc(x.shape, x.dtype, op)
    node = tape.record(op, (x,), (out,), _unary_backward, meta)
    return Tensor(tape, x.shape, x.dtype, out, node, False, x.by_token)


def _unary_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, name = cast(tuple[Shape, DType, str], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, name, by_token=grad.by_token)
    del kept
    return (out,)


def silu(tape: Tape, x: Tensor) -> Tensor:
    """`F.silu`: saves its input."""
    return unary(tape, "silu", x, save="input")


def clone(tape: Tape, x: Tensor) -> Tensor:
    """`x.clone()`: the gradient passes through."""
    node = tape.record("clone", (x,), (), _identity_backward)
    return tape.new(x.shape, x.dtype, "clone", node, by_token=x.by_token)


def scale(tape: Tape, x: Tensor, op: str = "mul") -> Tensor:
    """`x * number`: saves nothing."""
    return unary(tape, op, x, backward_op=op)


def divide_in_place(tape: Tape, x: Tensor) -> Tensor:
    """`x /= number`: saves nothing."""
    node = tape.record("div_", (x,), (), _unary_backward, (x.shape, x.dtype, "div"))
    return Tensor(tape, x.shape, x.dtype, x.storage, node, False, x.by_token)


def neg(tape: Tape, x: Tensor) -> Tensor:
    """`-x`: saves nothing."""
    return unary(tape, "neg", x, backward_op="neg")


def dropout(tape: Tape, x: Tensor, probability: float) -> Tensor:
    """`F.dropout` in training: on CUDA a fused kernel that saves a boolean mask; nothing for probability 0.

    Source: aten/src/ATen/native/Dropout.cpp (`is_fused_kernel_acceptable`), native/cuda/Dropout.cu.
    """
    if probability == 0 or not tape.training:
        return x
    if x.node is None or not tape.grad_enabled:
        out = tape.new(x.shape, x.dtype, "native_dropout")
        tape.alloc(x.shape, DType.BOOL, "native_dropout")
        return out
    storage = tape.alloc(x.shape, x.dtype, "native_dropout")
    mask = tape.alloc(x.shape, DType.BOOL, "native_dropout")
    node = tape.record("native_dropout", (x,), (mask,), _unary_backward, (x.shape, x.dtype, "native_dropout_backward"))
    return Tensor(tape, x.shape, x.dtype, storage, node)


# -- matrix products --------------------------------------------------------------------------------------


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x [..., N_in] with weight [N_out, N_in]; saves x for a trained weight, the weight for a trained x.

    With a bias it is `addmm`, whose backward computes the gradient of x first; `mm`'s computes the weight's first. `addmm`
    takes x viewed as [rows, N_in], and that view's turn in backward comes after the parameters' gradients: only what is done
    with those inside backward can tell.
    """
    if bias is not None and tape.steps_in_backward and len(x.shape) > 2:
        x = tape.view(x, x.shape, by_token=x.by_token)
    shape = (*x.shape[:-1], weight.shape[0])
    saved = (x if weight.node is not None else None, weight if x.node is not None else None)
    meta = (x.shape, weight.shape, x.dtype, bias is not None)
    node = tape.record("mm", (bias, x, weight), saved, _linear_backward, meta)
    return tape.new(shape, x.dtype, "mm", node)


def _linear_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, w_shape, dtype, has_bias = cast(tuple[Shape, Shape, DType, bool], node.meta)
    kept = node.all_stored()
    grad_x = grad_w = grad_b = None
    for position in (1, 2) if has_bias else (2, 1):
        if node.edges[position] is None:
            continue
        if position == 2:
            grad_w = tape.new(w_shape, dtype, "mm")
            grad_w.is_view = True  # it comes back through the transpose of the weight
        else:
            grad_x = tape.new(x_shape, dtype, "mm")
            grad_x.is_view = len(x_shape) > 2  # computed over [rows, N_in] and viewed back
    del kept  # as for a product: the bias's gradient is summed in the engine's `validate_outputs`
    if node.edges[0] is not None:
        grad_b = tape.new((w_shape[0],), dtype, "sum")
    return (grad_b, grad_x, grad_w)


# -- what norms are made of -------------------------------------------------------------------------------


def pow2(tape: Tape, x: Tensor) -> Tensor:
    """`x.pow(2)`: saves its input; backward forms `x * 2` and then its product with the gradient."""
    node = tape.record("pow", (x,), (x,), _pow2_backward, (x.shape, x.dtype))
    return tape.new(x.shape, x.dtype, "pow", node)


def _pow2_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    # C++ temporaries of `grad * (exponent * self.pow(exponent - 1))` live to the end of the expression.
    powered = tape.alloc(shape, dtype, "pow")
    scaled = tape.alloc(shape, dtype, "mul")
    out = tape.new(shape, dtype, "mul")
    del scaled, powered, kept
    return (out,)


def power(tape: Tape, x: Tensor) -> Tensor:
    """`x.pow(n)` for n > 2: saves its input."""
    node = tape.record("pow", (x,), (x,), _pow2_backward, (x.shape, x.dtype))
    return tape.new(x.shape, x.dtype, "pow", node)


def mean_last(tape: Tape, x: Tensor) -> Tensor:
    """`x.mean(-1, keepdim=True)`: backward divides the expanded gradient, a full-size result."""
    node = tape.record("mean", (x,), (), _mean_backward, (x.shape, x.dtype))
    return tape.new((*x.shape[:-1], 1), x.dtype, "mean", node)


def _mean_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "div"),)


def add_scalar(tape: Tape, x: Tensor) -> Tensor:
    """`x + number`: the gradient passes through."""
    node = tape.record("add", (x,), (), _identity_backward)
    return tape.new(x.shape, x.dtype, "add", node)


def _identity_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    return (grad,)


def rsqrt(tape: Tape, x: Tensor) -> Tensor:
    """`x.rsqrt()`: saves its result; backward is -0.5 * grad * result**3."""
    out = tape.alloc(x.shape, x.dtype, "rsqrt")
    node = tape.record("rsqrt", (x,), (out,), _rsqrt_backward, (x.shape, x.dtype))
    return Tensor(tape, x.shape, x.dtype, out, node)


def _rsqrt_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    cubed = tape.alloc(shape, dtype, "pow")
    scaled = tape.alloc(shape, dtype, "mul")
    out = tape.new(shape, dtype, "mul")
    del scaled, cubed, kept
    return (out,)
