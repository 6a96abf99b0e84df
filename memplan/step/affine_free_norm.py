"""LayerNorm without parameters.

Source: aten/src/ATen/native/cuda/layer_norm_kernel.cu, tools/autograd/derivatives.yaml, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step.tensor import Node, Shape, Tape, Tensor


def affine_free_layer_norm(t: Tape, x: Tensor) -> Tensor:
    """`nn.LayerNorm(elementwise_affine=False)` over the last dimension: saves its input, mean and reciprocal deviation."""
    rows = (*x.shape[:-1], 1)
    out = t.alloc(x.shape, x.dtype, "native_layer_norm")
    mean = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    rstd = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    node = t.record("native_layer_norm", (x,), (x, mean, rstd), _backward, (x.shape, x.dtype))
    return Tensor(t, x.shape, x.dtype, out, node)


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "native_layer_norm_backward")
    del kept
    return (out,)
