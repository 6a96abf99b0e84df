"""BOFT: the input rotated by a block-diagonal orthogonal matrix, the output scaled.

Symbols: B micro batch, S sequence length, n blocks, b block size, in = n b, out the layer's width.

Source: peft/tuners/boft/layer.py, BOFTLayer.cayley_batch and Linear.forward without PEFT's CUDA extension (PEFT 0.21.2);
torch 2.13 FunctionsManual.cpp (`linalg_solve_backward`, `block_diag_backward`).

Known limits:
    One butterfly factor, no dropout of blocks. A quantized model's permutations are in host memory, from where each forward
    copies them; those on its layers that are not quantized are taken to be on the device. What cuSOLVER borrows to solve the
    small systems is not on the tape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import autocast_mm, matmul


def boft(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`base(x @ rotation) * scale`; a bias is taken off before the scale and added behind it."""
    t, previous = layer.t, x.dtype
    out_features, size = layer.weight.shape
    identity = t.new((size, size), previous, "eye")
    ones = t.new((out_features, 1), previous, "ones")
    rotations = _cayley(t, layer["boft_R"])
    block = _block_diagonal(t, rotations, size)
    if layer.option("on_host"):
        permutation = t.new((1, size, size), previous, "_to_copy")
    else:
        permutation = ops.to(t, layer["boft_P"], previous)
    block = ops.to(t, t.view(block, (1, size, size)), previous)
    butterfly = autocast_mm(t, block, permutation)
    butterfly = autocast_mm(t, permutation, butterfly)
    rotation = autocast_mm(t, narrow(t, butterfly, (size, size), "select"), identity)
    del identity
    scale = layer["boft_s"] * ones
    del ones
    rotation = ops.to(t, rotation, previous)
    rotated = matmul(t, x, rotation)
    result = layer.base(rotated)
    if layer.bias is not None:
        result = ops.sub(t, result, layer.bias)
    result = result * t.view(scale, (out_features,))
    if layer.bias is not None:
        result = result + layer.bias
    result = ops.to(t, result, previous)
    del rotations, block, permutation, butterfly, rotated
    return result


def _cayley(t: Tape, data: Tensor) -> Tensor:
    """(I + Q)^-1 applied to I - Q from the right, in float32: [n, b, b] of R [1, n, b, b]."""
    shape = data.shape[1:]
    blocks = t.view(data, shape)
    skew = ops.scale(t, ops.sub(t, blocks, t.view(blocks, shape)))
    eye = t.new(shape[1:], DType.FLOAT32, "eye")
    solved = _solve(t, eye + skew, ops.sub(t, eye, skew))
    return ops.to(t, solved, data.dtype)


def _solve(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`torch.linalg.solve(a, b, left=False)` of matrices, or batches of them: saves a, the result and the factors of a."""
    out, factors = (t.alloc(a.shape, a.dtype, "_linalg_solve_ex") for _ in range(2))
    pivots = t.alloc(a.shape[:-1], DType.INT32, "_linalg_solve_ex")
    info = t.alloc(a.shape[:-2], DType.INT32, "_linalg_solve_ex")
    node = t.record("_linalg_solve_ex", (a, b), (a, out, factors, pivots), _solve_backward, (a.shape, a.dtype))
    del info
    return Tensor(t, a.shape, a.dtype, out, node)


def _solve_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    grad_b = tape.new(shape, dtype, "linalg_lu_solve")
    product = tape.alloc(shape, dtype, "mm" if len(shape) == 2 else "bmm")
    grad_a = tape.new(shape, dtype, "neg")
    del product, kept
    return (grad_a, grad_b)


def _block_diagonal(t: Tape, blocks: Tensor, size: int) -> Tensor:
    """`torch.block_diag(*blocks)`: [in, in]; the gradient's blocks are stacked."""
    node = t.record("block_diag", (blocks,), (), _stack_back, (blocks.shape,))
    return t.new((size, size), blocks.dtype, "block_diag", node)


def _stack_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "stack"),)
