"""C3A: a circular convolution of the input, by blocks.

Symbols: B micro batch, S sequence length, b block size, in = n b, out = m b.

Source: peft/tuners/c3a/{layer,utils}.py (PEFT 0.21.2).

Known limits:
    What cuFFT works in is not on the tape (`memplan.blind_spots`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.tensor import Node, Shape, Tape, Tensor, count_elements

_COMPLEX64 = DType.FLOAT64  # as wide


def c3a(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result += convolution(x, kernel) / in`."""
    t, previous = layer.t, x.dtype
    result = layer.base(x)
    x = ops.to(t, x, DType.FLOAT32)
    kernel = ops.to(t, layer["c3a_kernel"], DType.FLOAT32)
    x = ops.scale(t, _convolution(t, x, kernel), "div")
    result = ops.add_in_place(t, result, ops.to(t, x, result.dtype))
    return ops.to(t, result, previous)


def creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`update_layer`: the kernel is made in float32 on the device, then moved to the layer's type."""
    t, kernel = layer.t, layer["c3a_kernel"]
    made = t.new(kernel.shape, DType.FLOAT32, "zeros")
    return {"c3a_kernel": ops.to(t, made, kernel.dtype)}


def _convolution(t: Tape, x: Tensor, kernel: Tensor) -> Tensor:
    """`BlockCircularConvolution`: its result is a view of the real parts."""
    m, n, b = kernel.shape
    rows = x.shape[:-1]
    transformed = t.alloc((*rows, n, b), _COMPLEX64, "_fft_r2c")
    transformed_kernel = t.alloc(kernel.shape, _COMPLEX64, "_fft_r2c")
    product = t.alloc((b, count_elements(rows), m), _COMPLEX64, "bmm")
    del transformed_kernel, transformed
    out = t.alloc((*rows, m, b), _COMPLEX64, "_fft_c2c")
    del product
    meta = (x.shape, kernel.shape)
    node = t.record("BlockCircularConvolution", (x, kernel), (x, kernel), _convolution_backward, meta)
    return Tensor(t, (*rows, m * b), DType.FLOAT32, out, node, is_view=True)


def _convolution_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, (m, n, b) = cast(tuple[Shape, Shape], node.meta)
    kept = node.all_stored()
    rows = shape[:-1]
    transformed = tape.alloc((*rows, m, b), _COMPLEX64, "_fft_r2c")
    kernel = tape.alloc((m, n, b), _COMPLEX64, "_fft_r2c")
    product = tape.alloc((b, count_elements(rows), n), _COMPLEX64, "bmm")
    del kernel
    of_x = tape.alloc((*rows, n, b), _COMPLEX64, "_fft_c2c")
    del product
    inputs = tape.alloc((*rows, n, b), _COMPLEX64, "_fft_r2c")
    product = tape.alloc((b, m, n), _COMPLEX64, "bmm")
    del inputs
    of_kernel = tape.alloc((m, n, b), _COMPLEX64, "_fft_c2c")
    del product, transformed, kept
    return (
        Tensor(tape, shape, DType.FLOAT32, of_x, None, is_view=True),
        Tensor(tape, (m, n, b), DType.FLOAT32, of_kernel, None, is_view=True, by_token=True),
    )
