"""Convolutions: patch embeddings of images, the front of audio encoders.

Symbols: B batch, C channels, L positions (of one or two spatial dimensions).

Source: torch 2.13 aten/src/ATen/native/Convolution.cpp; tools/autograd/derivatives.yaml (`convolution_overrideable`).

Known limits:
    What a cuDNN algorithm uses as workspace depends on the device and is not counted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.layers import LayerOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


def conv(
    t: LayerOps,
    name: str,
    x: Tensor,
    out_channels: int,
    kernel: tuple[int, ...],
    out_shape: Shape,
    *,
    in_channels: int,
    groups: int = 1,
    bias: bool = True,
) -> Tensor:
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`, by the number of `kernel` sizes.

    Args:
        t: the builder.
        name: module name.
        x: the input.
        out_channels: filters.
        kernel: sizes of the kernel.
        out_shape: shape of the result (padding and stride applied).
        in_channels: channels of the input.
        groups: of channels.
        bias: whether it has one.
    """
    path = t.join(name)
    shape = (out_channels, in_channels // groups, *kernel)
    if t.declaring:
        parameters = (Parameter("weight", shape), Parameter("bias", (out_channels,)))
        t.declare(
            Module(path, ModuleKind.CONV, parameters if bias else parameters[:1], class_name=f"Conv{len(kernel)}d")
        )
    outer, t.module = t.module, path
    weight = t.parameter(path, "weight", shape)
    offset = t.parameter(path, "bias", (out_channels,)) if bias else None
    autocast = t.settings.autocast
    if autocast is not None:
        x, weight = ops.to(t, x, autocast), t.cast_weight(weight, autocast)
        offset = t.cast_weight(offset, autocast) if offset is not None else None
    node = t.record("convolution", (x, weight, offset), (x, weight), _backward, (x.shape, shape, x.dtype))
    out = t.new(out_shape, x.dtype, "convolution", node)
    t.module = outer
    return out


def weight_dtype(t: LayerOps, name: str) -> DType:
    """Element type of the weight of the submodule `name`; float32 while declaring."""
    site = t.sites.get(t.join(name)) if t.sites else None
    weight = site.parameter("weight") if site else None
    return weight.dtype if weight else DType.FLOAT32


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, w_shape, dtype = cast(tuple[Shape, Shape, DType], node.meta)
    kept = node.all_stored()
    shapes = (x_shape, w_shape, w_shape[:1])
    grads = [
        tape.new(shape, dtype, "convolution_backward") if edge is not None else None
        for shape, edge in zip(shapes, node.edges, strict=True)
    ]
    del kept
    return tuple(grads)
