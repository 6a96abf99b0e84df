"""What encoder-decoders do about infinities in float16: look for them, clamp them.

Symbols: B micro batch, S sequence length, H hidden size.

Sources: transformers 5.23 models/{bart,mbart,t5}/modeling_*.py; torch 2.13 tools/autograd/derivatives.yaml (`clamp`),
FunctionsManual.cpp (`clamp_backward`), aten/src/ATen/native/TensorCompare.cpp (`isfinite`).

Known limits:
    Hidden states are taken to be finite: BART clamps in a step in which they are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor


def look_for_infinities(t: Tape, x: Tensor) -> None:
    """`torch.isfinite(x).all()`: `(x == x) * (x.abs() != inf)`; nothing of it stays."""
    magnitude = t.alloc(x.shape, x.dtype, "abs")
    finite = t.alloc(x.shape, DType.BOOL, "ne")
    equal = t.alloc(x.shape, DType.BOOL, "eq")
    both = t.alloc(x.shape, DType.BOOL, "mul")
    del equal, finite, magnitude
    t.alloc((), DType.BOOL, "all")
    del both


def clamp(t: Tape, x: Tensor) -> Tensor:
    """`x.clamp(min, max)` with numbers: saves its input."""
    node = t.record("clamp", (x,), (x,), _clamp_backward, (x.shape, False))
    return t.new(x.shape, x.dtype, "clamp", node)


def clamp_where_infinite(t: Tape, x: Tensor) -> tuple[Tensor, Storage]:
    """T5's clamp, to less where a value is infinite already, and the bound, which a variable of the block holds."""
    infinite = t.alloc(x.shape, DType.BOOL, "isinf")
    found = t.alloc((), DType.BOOL, "any")
    del infinite
    choices = [t.alloc((), x.dtype, "scalar_tensor") for _ in range(2)]
    bound = t.alloc((), x.dtype, "where")
    del choices, found
    lower = t.alloc((), x.dtype, "neg")
    node = t.record("clamp", (x,), (x, lower, bound), _clamp_backward, (x.shape, True))
    return t.new(x.shape, x.dtype, "clamp", node), bound


def _clamp_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, bounded_by_tensors = cast(tuple[Shape, bool], node.meta)
    kept = node.all_stored()
    zero = tape.alloc((), grad.dtype, "scalar_tensor")
    inside = [tape.alloc(shape, DType.BOOL, op) for op in ("ge", "le")]
    if bounded_by_tensors:  # the other joins them in place
        inside.append(tape.alloc(shape, DType.BOOL, "logical_and"))
    out = tape.new(shape, grad.dtype, "where")
    del inside, zero, kept
    return (out,)


def clamp_from_below(t: Tape, x: Tensor) -> Tensor:
    """`x.clamp(min=number)`: saves its input."""
    node = t.record("clamp", (x,), (x,), _clamp_from_below_backward, (x.shape,))
    return t.new(x.shape, x.dtype, "clamp", node)


def _clamp_from_below_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    zero = tape.alloc((), grad.dtype, "scalar_tensor")
    inside = tape.alloc(shape, DType.BOOL, "ge")
    out = tape.new(shape, grad.dtype, "where")
    del inside, zero, kept
    return (out,)
