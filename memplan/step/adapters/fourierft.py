"""FourierFT: a few Fourier coefficients of the update, which is materialised, [out, in].

Symbols: n trained coefficients.

Source: peft/tuners/fourierft/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor

_COMPLEX64 = DType.FLOAT64  # as wide


def fourierft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + F.linear(x, ifft2(spectrum).real * scaling)`."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    delta = _delta_weight(layer)
    x = ops.to(t, x, delta.dtype)
    result = result + t.matmul(x, delta, None)
    return ops.to(t, result, previous)


def _delta_weight(layer: AdaptedLayer) -> Tensor:
    t, spectrum, shape = layer.t, layer["fourierft_spectrum"], layer.weight.shape
    indices = t.new((2, spectrum.shape[0]), DType.INT64, "_to_copy")
    storage = t.alloc(shape, DType.FLOAT32, "zeros")
    values = ops.to(t, spectrum, DType.FLOAT32)
    node = t.record("index_put_", (values,), (indices,), _index_backward, (values.shape, values.dtype))
    dense = Tensor(t, shape, DType.FLOAT32, storage, node)
    del values
    return ops.to(t, ops.scale(t, _real(t, _ifft2(t, _complex(t, dense)))), spectrum.dtype)


def _index_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "index")
    del kept
    return (out,)


def _complex(t: Tape, x: Tensor) -> Tensor:
    """x with imaginary parts of 0; its gradient is the real part, a view."""
    node = t.record("_to_copy", (x,), (), _complex_backward, (x.shape,))
    return t.new(x.shape, _COMPLEX64, "_to_copy", node)


def _complex_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, DType.FLOAT32, grad.storage, None, is_view=True),)


def _ifft2(t: Tape, x: Tensor) -> Tensor:
    return ops.unary(t, "_fft_c2c", x, backward_op="_fft_c2c")


def _real(t: Tape, x: Tensor) -> Tensor:
    """The real parts, a view; backward puts them among zeros."""
    node = t.record("select", (x,), (), _real_backward, (x.shape,))
    return Tensor(t, x.shape, DType.FLOAT32, x.storage, node, is_view=True)


def _real_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, _COMPLEX64, "select_backward"),)
