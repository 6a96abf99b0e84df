"""Mixture of experts: the router's top-k, and experts as one grouped product over tokens sorted by expert.

Symbols: N tokens (B·S), E experts, C experts chosen per token, T = N·C, H hidden size, I intermediate size.

Source: transformers 5.23 integrations/moe.py (`grouped_mm_experts_forward`, the default experts implementation since torch 2.9,
and `batched_mm_experts_forward`, which generation turns to after the prompt: generation/utils.py, `_optimize_model_for_decode`)
and the routers of models/{mixtral,qwen2_moe,qwen3_moe,deepseek_v2,deepseek_v3,gpt_oss}; torch 2.13
tools/autograd/derivatives.yaml (`_grouped_mm`, `index`, `topk`), aten/src/ATen/native/cuda/{Sort.cpp,Indexing.cu}.

Known limits:
    Scratch memory that sorting and indexing take inside their kernels is not on the tape. Below compute capability 8.0 the
    library's own loop runs instead of `grouped_mm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.split import split
from memplan.step.tensor import Node, Shape, Tape, Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router returns.

    Attributes:
        logits: [N, E].
        weights: of the chosen experts, [N, C].
        experts: their indices, int64 [N, C].
    """

    logits: Tensor
    weights: Tensor
    experts: Tensor


def top_k(t: Tape, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk(x, count, dim=-1)`: values and int64 indices [..., count]; the gradient is scattered into zeros."""
    shape = (*x.shape[:-1], count)
    values = t.alloc(shape, x.dtype, "topk")
    indices = t.new(shape, DType.INT64, "topk")
    node = t.record("topk", (x,), (indices,), _scatter_back, (x.shape, "value_selecting_reduction_backward"))
    return Tensor(t, shape, x.dtype, values, node), indices


def gather(t: Tape, x: Tensor, indices: Tensor) -> Tensor:
    """`x.gather(1, indices)`: the gradient is scattered into zeros."""
    node = t.record("gather", (x,), (indices,), _scatter_back, (x.shape, "gather_backward"))
    return t.new(indices.shape, x.dtype, "gather", node)


def index_rows(t: Tape, x: Tensor, indices: Tensor) -> Tensor:
    """`x[indices]` along the first dimension: saves the indices, the gradient is added into zeros."""
    node = t.record("index", (x,), (indices,), _scatter_back, (x.shape, "index_backward"))
    return t.new((*indices.shape, *x.shape[1:]), x.dtype, "index", node)


def _scatter_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, op = cast(tuple[Shape, str], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, op)
    del kept
    return (out,)


def normalise(t: Builder, weights: Tensor, *, epsilon: bool = False) -> Tensor:
    """`weights /= weights.sum(-1, keepdim=True)` (`+ epsilon`), in place: a clone of the dividend is saved for the sum."""
    total = sum_last(t, weights, keepdim=True)
    if epsilon:
        total = ops.add_scalar(t, total)
    dividend = t.alloc(weights.shape, weights.dtype, "clone") if total.node is not None else None
    kinds = (weights.shape, weights.dtype, total.shape, total.dtype)
    node = t.record("div_", (weights, total), (dividend, total), _div_backward, kinds)
    return Tensor(t, weights.shape, weights.dtype, weights.storage, node)


def _div_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, total, total_dtype = cast(tuple[Shape, DType, Shape, DType], node.meta)
    kept = node.all_stored()
    wide = ops.promote(grad.dtype, total_dtype)
    left = tape.new(shape, wide, "div")
    ratio = tape.alloc(shape, wide, "div")
    full = tape.alloc(shape, wide, "mul")
    right = tape.new(total, wide, "sum")
    del full, ratio, kept
    return (ops.fit_gradient(tape, left, shape, dtype), right)


def sum_last(t: Builder, x: Tensor, *, keepdim: bool) -> Tensor:
    """`x.sum(-1)`: the gradient is expanded, a view."""
    shape = (*x.shape[:-1], 1) if keepdim else x.shape[:-1]
    node = t.record("sum", (x,), (), _expand_back, (x.shape, x.dtype))
    return t.new(shape, _sum_dtype(t, x), "sum", node)


def _sum_dtype(t: Builder, x: Tensor) -> DType:
    """Autocast asks `sum` for a float32 result (autocast_mode.h, `fp32_set_opt_dtype`)."""
    return x.dtype if t.settings.autocast is None else DType.FLOAT32


def _sum_middle(t: Builder, x: Tensor) -> Tensor:
    """`x.view(N, C, H).sum(dim=1)` of [N·C, H]: the expanded gradient is copied, since no view of it is [N·C, H]."""
    node = t.record("sum", (x,), (), _copy_expanded, (x.shape, x.dtype))
    return t.new((x.shape[0], x.shape[2]), _sum_dtype(t, x), "sum", node)


def _copy_expanded(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "clone" if dtype is grad.dtype else "_to_copy"),)


def _expand_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (ops.fit_gradient(tape, Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True), shape, dtype),)


@dataclass(frozen=True, slots=True)
class ExpertShapes:
    """How the experts' parameters are stored.

    Attributes:
        experts: E.
        hidden: H.
        intermediate: I.
        transposed: weights are [E, in, out] instead of [E, out, in] (gpt-oss).
        bias: whether the projections have biases.
    """

    experts: int
    hidden: int
    intermediate: int
    transposed: bool = False
    bias: bool = False

    def weight(self, out_features: int, in_features: int) -> Shape:
        """Shape of a weight of all experts."""
        rest = (in_features, out_features) if self.transposed else (out_features, in_features)
        return (self.experts, *rest)


def experts(
    t: Builder, x: Tensor, routing: Routing, shapes: ExpertShapes, gate: Callable[[Builder, Tensor], Tensor]
) -> Tensor:
    """`grouped_mm_experts_forward`: x [N, H] through the chosen experts, summed with their weights: [N, H].

    Args:
        t: the builder; its current module owns `gate_up_proj` and `down_proj`.
        x: [N, H].
        routing: of the same tokens.
        shapes: of the parameters.
        gate: from [T, 2·I] to [T, I].
    """
    tokens, chosen = routing.experts.shape
    width = 2 * shapes.intermediate
    gate_up = t.bare("gate_up_proj", shapes.weight(width, shapes.hidden))
    gate_up_bias = t.bare("gate_up_proj_bias", (shapes.experts, width)) if shapes.bias else None
    down = t.bare("down_proj", shapes.weight(shapes.hidden, shapes.intermediate))
    down_bias = t.bare("down_proj_bias", (shapes.experts, shapes.hidden)) if shapes.bias else None

    rows = (tokens * chosen,)
    sample_weights = t.view(routing.weights, rows)
    if t.cache is not None and t.cache.length:
        return _batched_experts(t, x, sample_weights, ((gate_up, gate_up_bias), (down, down_bias)), chosen, gate)
    sorted_experts = t.new(rows, DType.INT64, "sort")
    permutation = t.new(rows, DType.INT64, "sort")
    selected = index_rows(t, x, t.new(rows, DType.INT64, "floor_divide"))
    sample_weights_sorted = index_rows(t, sample_weights, permutation)
    histogram_input = t.new(rows, DType.INT32, "_to_copy")
    tokens_per_expert = t.new((shapes.experts,), DType.INT32, "histc")
    offsets = t.new((shapes.experts,), DType.INT32, "cumsum")
    biases = index_rows(t, gate_up_bias, sorted_experts) if gate_up_bias is not None else None
    projected = grouped_linear(t, selected, gate_up, width, offsets, biases)
    projected = gate(t, projected)
    biases = index_rows(t, down_bias, sorted_experts) if down_bias is not None else None
    projected = grouped_linear(t, projected, down, shapes.hidden, offsets, biases)
    weighted = projected * t.view(sample_weights_sorted, (*rows, 1))
    inverse = t.new(rows, DType.INT64, "empty_like")
    arange = t.alloc(rows, DType.INT64, "arange")
    del arange
    weighted = index_rows(t, weighted, inverse)
    final = _sum_middle(t, t.view(weighted, (tokens, chosen, shapes.hidden)))
    out = ops.to(t, final, x.dtype)
    del tokens_per_expert, histogram_input, final
    return out


def _batched_experts(
    t: Builder,
    x: Tensor,
    sample_weights: Tensor,
    projections: tuple[tuple[Tensor, Tensor | None], ...],
    chosen: int,
    gate: Callable[[Builder, Tensor], Tensor],
) -> Tensor:
    """`batched_mm_experts_forward`, to which generation turns after the prompt: every token gets copies of its experts."""
    rows = sample_weights.shape
    ids = Tensor(t, rows, DType.INT64, None)
    selected = t.new((*rows, x.shape[1]), x.dtype, "clone")
    (gate_up, gate_up_bias), (down, down_bias) = projections
    weights = index_rows(t, gate_up, ids)
    biases = index_rows(t, gate_up_bias, ids) if gate_up_bias is not None else None
    projected = _batched_linear(t, selected, weights, gate_up)
    projected = gate(t, projected)
    weights = index_rows(t, down, ids)
    biases = index_rows(t, down_bias, ids) if down_bias is not None else None
    projected = _batched_linear(t, projected, weights, down)
    weighted = projected * t.view(sample_weights, (*rows, 1))
    final = _sum_middle(t, t.view(weighted, (rows[0] // chosen, chosen, x.shape[1])))
    out = ops.to(t, final, x.dtype)
    del selected, weights, biases, projected, weighted, final
    return out


def gated(function: str) -> Callable[[Builder, Tensor], Tensor]:
    """`_default_apply_gate`: act(gate) * up on the halves of [T, 2·I]."""

    def gate(t: Builder, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        left, right = split(t, x, (half, half))
        return t.activation(function, left) * right

    return gate


def _batched_linear(t: Builder, x: Tensor, selected: Tensor, weight: Tensor) -> Tensor:
    """`_batched_linear`: each row of x [T, in] times a matrix of its own; the bias is added in place."""
    dtype = t.settings.autocast or weight.dtype
    out_features = selected.shape[1] if selected.shape[2] == x.shape[1] else selected.shape[2]
    held = [ops.to(t, selected, dtype), ops.to(t, x, dtype)]
    out = t.new((x.shape[0], out_features), dtype, "bmm")
    del held
    return out


def grouped_linear(
    t: Builder, x: Tensor, weight: Tensor, out_features: int, offsets: Tensor, bias: Tensor | None
) -> Tensor:
    """`_grouped_linear`: each run of rows of x [T, in] times its expert's matrix; autocast does not know it.

    Saves x where the weight is trained, the weight where x needs a gradient, and the offsets; the bias is added in place. The
    library's loop saves x and the weight whatever they are for, and its context keeps the offsets as long as the graph lives.
    """
    x = ops.to(t, x, weight.dtype)
    saved: tuple[Tensor | None, ...] = (
        x if weight.node is not None else None,
        weight if x.node is not None else None,
        offsets,
    )
    looped = t.settings.compute_capability < (8, 0)
    if looped:
        saved = (x, weight)
    node = t.record("_grouped_mm", (x, weight), saved, _grouped_mm_backward, (x.shape, weight.shape, x.dtype, looped))
    if looped and node is not None:
        t.hold(offsets)
    out = t.new((x.shape[0], out_features), x.dtype, "_grouped_mm", node)
    if bias is None:
        return out
    added = t.record("add_", (out, bias), (), _add_backward)
    return Tensor(t, out.shape, out.dtype, out.storage, added)


def _grouped_mm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, w_shape, dtype, looped = cast(tuple[Shape, Shape, DType, bool], node.meta)
    kept = node.all_stored()
    needed = [edge is not None or looped for edge in node.edges]  # the loop's backward always makes both
    grad_x = tape.new(x_shape, dtype, "_grouped_mm") if needed[0] else None
    grad_w = tape.new(w_shape, dtype, "_grouped_mm") if needed[1] else None
    del kept
    return (grad_x if node.edges[0] is not None else None, grad_w if node.edges[1] is not None else None)


def _add_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    return tuple(
        Tensor(tape, grad.shape, grad.dtype, grad.storage, None, is_view=grad.is_view) if edge is not None else None
        for edge in node.edges
    )
