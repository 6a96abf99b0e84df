"""Liger's `LigerFusedLinearCrossEntropyFunction`: logits by pieces, and all gradients of the head in the forward pass.

Symbols: B micro batch, S sequence length, N tokens (B·S), H hidden size, V vocabulary, C tokens of a piece.

Sources: liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py, transformers/model/loss_utils.py (`LigerForCausalLMLoss`).

Known limits:
    CUDA, no class weights, mean over the tokens, accumulation in the parameters' own type, as Trainer's patch calls it.
    Triton's kernels work in place and allocate nothing. Of pieces that are alike only the first two are executed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.dim import Dim, executed_pieces, next_power_of_two
from memplan.step.layers import LayerOps
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor

# torch.addmm writes into the accumulator from here on; before, the product is a temporary, and its copy in float32.
_ADDMM_CAPABILITY = (8, 0)


def fused_linear_loss(t: LayerOps, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The mean loss of `hidden` [B, S, H] under the head `weight` [V, H]; labels are shifted by padding."""
    with t.component(Component.LOGITS_AND_LOSS):
        batch, length, width = hidden.shape
        padded = t.new((batch, length + 1), DType.INT64, "constant_pad_nd")
        labels = padded if batch == 1 else t.new((batch, length), DType.INT64, "clone")
        x = t.view(hidden, (batch * length, width))
        loss = _apply(t, x, weight, bias)
        del padded, labels
        return loss


def _apply(t: LayerOps, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`LigerFusedLinearCrossEntropyFunction.apply`; it saves nothing but the gradients that it has computed."""
    assert x.node is not None, "nothing below the head is trained: Liger computes no gradient at all"
    outer, t.grad_enabled = t.grad_enabled, False
    tokens = x.shape[0]
    grad_x = t.alloc(x.shape, x.dtype, "zeros_like")
    grad_weight = t.alloc(weight.shape, weight.dtype, "zeros_like") if weight.node is not None else None
    grad_bias = t.alloc(bias.shape, bias.dtype, "zeros_like") if bias is not None else None
    losses = t.alloc((tokens,), DType.FLOAT32, "zeros")
    mask = t.alloc((tokens,), DType.BOOL, "ne")
    t.alloc((), DType.INT64, "sum")
    _pieces(t, x, weight, bias, grad_weight is not None)
    out = t.alloc((), DType.FLOAT32, "sum")
    del mask, losses
    t.grad_enabled = outer
    trained_bias = bias if bias is not None and bias.node is not None else None
    saved = (grad_x, grad_weight, grad_bias)
    shapes = (x.shape, x.dtype, weight.shape, weight.dtype, weight.node is not None)
    node = t.record("LigerFusedLinearCrossEntropy", (x, weight, trained_bias), saved, _backward, shapes)
    return Tensor(t, (), DType.FLOAT32, out, node)


def piece_rows(tokens: Dim, hidden: int, vocabulary: int) -> Dim:
    """Tokens of a piece: its logits take about as much as `hidden` [N, H] does, rounded up to a power of two."""
    pieces = -(-vocabulary // hidden)
    rows = next_power_of_two(-(-tokens // pieces))
    return tokens if tokens < rows else rows


def _pieces(t: LayerOps, x: Tensor, weight: Tensor, bias: Tensor | None, weight_is_trained: bool) -> None:
    tokens = x.shape[0]
    assert isinstance(tokens, Dim)
    rows = piece_rows(tokens, int(x.shape[1]), int(weight.shape[0]))
    reuses = _reuses_logits(t, x, weight)
    buffer = reuses and (bias is None or bias.dtype is x.dtype)
    storage = t.alloc((rows, weight.shape[0]), x.dtype, "empty") if buffer else None
    if storage is not None:
        t.use_blas()
    for size in executed_pieces(tokens, rows):
        _piece(t, size, x, weight, bias, weight_is_trained, reuses, storage)
    del storage


def _reuses_logits(t: LayerOps, x: Tensor, weight: Tensor) -> bool:
    """`_can_use_mm_out`: products are written where they belong, if autocast would change no operand."""
    return x.dtype is weight.dtype and t.settings.autocast in (None, x.dtype)


def _piece(
    t: LayerOps,
    size: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_is_trained: bool,
    reuses: bool,
    buffer: Storage | None,
) -> None:
    """Logits of `size` tokens, then their gradient in its place, then its products with weight and input."""
    vocabulary, width = weight.shape
    compute = t.settings.autocast or x.dtype
    piece = Tensor(t, (size, width), x.dtype, x.storage, None, is_view=True)
    if buffer is None:
        # weight.t() is no leaf, so autocast does not keep its copy.
        transposed = ops.to(t, Tensor(t, (width, vocabulary), weight.dtype, weight.storage), compute)
        operand = ops.to(t, piece, compute)
        logits = t.new((size, vocabulary), compute, "mm")
        del operand, transposed
        if bias is not None:
            logits = t.new((size, vocabulary), ops.promote(compute, bias.dtype), "add")
        gradient_dtype = logits.dtype
    else:
        logits, gradient_dtype = None, x.dtype
    if not (reuses and gradient_dtype is x.dtype):
        operand = t.cast_weight(weight, compute)
        product = t.new((size, width), compute, "mm")
        del operand, product
    if weight_is_trained:
        _accumulate_weight(t, piece, weight, gradient_dtype)
    if bias is not None:
        t.alloc((vocabulary,), gradient_dtype, "sum")
    del logits


def _accumulate_weight(t: LayerOps, piece: Tensor, weight: Tensor, gradient_dtype: DType) -> None:
    """`grad_weight += grad_logits.t() @ input`: in place where addmm can, otherwise by way of a float32 product."""
    in_place = weight.dtype in (DType.FLOAT32, gradient_dtype)
    if t.settings.compute_capability >= _ADDMM_CAPABILITY and gradient_dtype.is_half and in_place:
        ops.to(t, piece, gradient_dtype)
        t.use_blas()
        return
    compute = t.settings.autocast or piece.dtype
    operand = ops.to(t, piece, compute)
    product = t.new(weight.shape, compute, "mm")
    del operand
    ops.to(t, product, DType.FLOAT32)


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """The saved gradients, scaled in place: `torch.equal(grad_output, 1.0)` is all that allocates."""
    x_shape, x_dtype, w_shape, w_dtype, has_weight = cast(tuple[Shape, DType, Shape, DType, bool], node.meta)
    kept = node.all_stored()
    one = tape.alloc((), DType.FLOAT32, "_to_copy")
    same = tape.alloc((), DType.BOOL, "eq")
    tape.alloc((), DType.BOOL, "all")
    del same, one
    grad_x = Tensor(tape, x_shape, x_dtype, kept[0], None, is_view=True)
    grad_w = Tensor(tape, w_shape, w_dtype, kept[1]) if has_weight else None
    grad_b = Tensor(tape, w_shape[:1], w_dtype, kept[-1]) if node.edges[2] is not None else None
    del kept
    return (grad_x, grad_w, grad_b)
