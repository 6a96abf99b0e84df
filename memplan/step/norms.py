"""Norms that only one family has: without weights, in float32, a module per head, with a weight of 1 + w.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size.

Source: transformers 5.23 models/{olmo,cohere,stablelm,gemma,gemma2,gemma3}/modeling_*.py.
"""

from __future__ import annotations

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.layers import LayerOps
from memplan.step.split import concatenate, split
from memplan.step.tensor import Node, Shape, Tape, Tensor


def layer_norm_without_weights(t: LayerOps, x: Tensor) -> Tensor:
    """`OlmoLayerNorm`: F.layer_norm of x [..., H] in float32 without weight and bias, cast back."""
    hidden = ops.to(t, x, DType.FLOAT32)
    rows = (*x.shape[:-1], 1)
    kept = t.packed(hidden, (hidden,))
    out = t.alloc(x.shape, DType.FLOAT32, "native_layer_norm")
    mean = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    rstd = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    node = t.record("native_layer_norm", (hidden,), (kept, mean, rstd), _layer_norm_backward, (x.shape,))
    return ops.to(t, Tensor(t, x.shape, DType.FLOAT32, out, node), x.dtype)


def _layer_norm_backward(tape: Tape, node: Node, grad: Tensor) -> tuple[Tensor]:
    (shape,) = node.meta
    assert isinstance(shape, tuple)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "native_layer_norm_backward")
    del kept
    return (out,)


def layer_norm_in_float(t: LayerOps, name: str, x: Tensor, weight_shape: Shape, *, class_name: str) -> Tensor:
    """`CohereLayerNorm`: written out in float32, no bias; the weight may have a row per head."""

    def forward(t: LayerOps, x: Tensor) -> Tensor:
        weight = _weight(t, weight_shape, class_name)
        hidden = ops.to(t, x, DType.FLOAT32)
        mean = ops.mean_last(t, hidden)
        variance = ops.mean_last(t, ops.pow2(t, ops.sub(t, hidden, mean)))
        hidden = ops.sub(t, hidden, mean) * ops.rsqrt(t, ops.add_scalar(t, variance))
        hidden = ops.to(t, weight, DType.FLOAT32) * hidden
        return ops.to(t, hidden, x.dtype)

    return t.call(name, forward, x)


def layer_norm_per_head(t: LayerOps, x: Tensor) -> Tensor:
    """`StableLmLayerNormPerHead`: x [B, A, S, D] taken apart by heads, each normed by a module of its own, joined again."""
    normed = [t.layer_norm(f"norms.{index}", head, bias=False) for index, head in enumerate(_by_head(t, x))]
    return concatenate(t, normed, x.shape)


def _by_head(t: LayerOps, x: Tensor) -> list[Tensor]:
    # `split` cuts the last dimension; sizes are what matters, so the heads take its place.
    turned = t.view(x, (x.shape[0], x.shape[2], x.shape[3], x.shape[1]))
    return [t.view(part, (x.shape[0], 1, *x.shape[2:])) for part in split(t, turned, [1] * int(x.shape[1]))]


def gemma_rms_norm(t: LayerOps, name: str, x: Tensor, *, class_name: str) -> Tensor:
    """`GemmaRMSNorm`: x [..., H] in float32, times (1 + weight.float()), cast back."""

    def forward(t: LayerOps, x: Tensor) -> Tensor:
        weight = _weight(t, x.shape[-1:], class_name)
        hidden = ops.to(t, x, DType.FLOAT32)
        output = hidden * ops.rsqrt(t, ops.add_scalar(t, ops.mean_last(t, ops.pow2(t, hidden))))
        del hidden
        output = output * ops.add_scalar(t, ops.to(t, weight, DType.FLOAT32))
        return ops.to(t, output, x.dtype)

    return t.call(name, forward, x)


def _weight(t: LayerOps, shape: Shape, class_name: str) -> Tensor:
    if t.declaring:
        sizes = tuple(int(size) for size in shape)
        t.declare(Module(t.path, ModuleKind.NORM, (Parameter("weight", sizes),), class_name=class_name))
    return t.parameter(t.path, "weight", shape)
