"""The head and loss of TRL's SFTTrainer: log-probabilities from tiles of logits, computed again in backward.

Symbols: B micro batch, S sequence length, N tokens with a label, B·(S-1), H hidden size, V vocabulary.

Sources: trl 1.16.0 kernels/chunked_logprob.py (`ChunkedLogProbFunction`), trainer/utils.py (`add_fused_lm_head`),
trainer/sft_trainer.py (`compute_loss`).

Known limits:
    Every token has a label, the upper bound. Triton's kernels work in place and allocate nothing; what selecting by a mask
    sorts inside is left out, some 40 bytes a token while the tiles are not there. So are the scalars of the metrics.
    Of pieces that are alike only the first two are executed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops, split
from memplan.step.dim import executed_pieces
from memplan.step.layers import LayerOps
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor

TOKENS_OF_A_TILE = 4096
VOCABULARY_OF_A_TILE = 32768


def sft_loss(t: LayerOps, hidden: Tensor, weight: Tensor) -> Tensor:
    """`compute_loss` with `loss_type="nll"`: hidden [B, S, H], the head's weight [V, H]."""
    with t.component(Component.LOGITS_AND_LOSS):
        log_probs, entropy, is_top1 = _fused_head(t, hidden, weight)
        negative = ops.neg(t, log_probs)
        loss = ops.scale(t, _sum(t, negative), "div")
        del entropy, is_top1, negative, log_probs
        return loss


def _fused_head(t: LayerOps, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_fused_forward` after the backbone: what it computes for each token, [B, S-1]."""
    batch, length, width = hidden.shape
    shape = (batch, length - 1)
    tokens = batch * (length - 1)
    kept = split.narrow(t, hidden, (*shape, width))
    mask = t.new(shape, DType.BOOL, "ne")
    x = _select(t, kept, mask, (tokens, width))
    targets = t.alloc((tokens,), DType.INT64, "index")
    log_probs, entropy, is_top1 = _chunked(t, x, weight, targets)
    del x, targets
    logged = _scatter(t, log_probs, mask, shape)
    if t.offloader is not None:
        # The entropy's graph and that of the mean below are never differentiated: what they save is never asked for.
        t.offloader.pack(mask)
    found = (logged, *(_scatter(t, part, mask, shape) for part in (entropy, is_top1)))
    del log_probs, entropy, is_top1, logged
    mean = [t.alloc((), DType.FLOAT32, "neg"), t.alloc((), DType.INT64, "clamp"), t.alloc((), DType.FLOAT32, "div")]
    if t.offloader is not None:
        t.offloader.pack(mean[1])
    del mean, mask
    return found[0], found[1], found[2]


def _select(t: LayerOps, x: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """`x[mask]`: a copy; backward writes it into zeros."""
    node = t.record("index", (x,), (mask,), _select_backward, (x.shape,))
    return t.new(shape, x.dtype, "index", node)


def _select_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.stored(0)
    out = tape.new(shape, grad.dtype, "new_zeros")
    del kept
    return (out,)


def _scatter(t: LayerOps, x: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """`x.new_zeros(shape).masked_scatter(mask, x)`; backward selects."""
    zeros = t.alloc(shape, x.dtype, "new_zeros")
    node = t.record("masked_scatter", (x,), (mask,), _scatter_backward, (x.shape,))
    out = t.new(shape, x.dtype, "masked_scatter", node)
    del zeros
    return out


def _scatter_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "masked_scatter_backward"),)


def _sum(t: LayerOps, x: Tensor) -> Tensor:
    node = t.record("sum", (x,), (), _sum_backward, (x.shape,))
    return t.new((), x.dtype, "sum", node)


def _sum_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


# -- ChunkedLogProbFunction -----------------------------------------------------------------------------------


def _chunked(t: LayerOps, x: Tensor, weight: Tensor, targets: Storage) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and whether the label is the likeliest, for x [N, H]; saves x and a number a token."""
    tokens = x.shape[0]
    compute = t.settings.autocast or x.dtype
    outer, t.grad_enabled = t.grad_enabled, False
    statistics = [t.alloc((tokens,), DType.FLOAT32, "full") for _ in range(7)]
    tile = t.alloc((_rows(tokens), VOCABULARY_OF_A_TILE), compute, "empty")
    rows = None
    for size in executed_pieces(tokens, _rows(tokens)):
        rows = ops.to(t, Tensor(t, (size, x.shape[1]), x.dtype, x.storage), compute)
        for columns in _columns(weight.shape[0]):
            ops.to(t, Tensor(t, (columns, weight.shape[1]), weight.dtype, weight.storage), compute)
            t.use_blas()
    log = t.alloc((tokens,), DType.FLOAT32, "log")
    log_z = t.alloc((tokens,), DType.FLOAT32, "add")
    del log
    log_probs = t.alloc((tokens,), DType.FLOAT32, "sub")
    quotient = t.alloc((tokens,), DType.FLOAT32, "div")
    entropy = t.alloc((tokens,), DType.FLOAT32, "sub")
    del quotient
    compared = [t.alloc((tokens,), DType.BOOL, name) for name in ("ge", "gt")]
    is_top1 = t.new((tokens,), DType.BOOL, "bitwise_and")
    del compared, statistics, tile, rows
    t.grad_enabled = outer
    meta = (x.shape, x.dtype, weight.shape, weight.dtype, compute)
    node = t.record("ChunkedLogProb", (x, weight), (x, weight, targets, log_z, entropy), _backward, meta)
    shape = (tokens,)
    return Tensor(t, shape, DType.FLOAT32, log_probs, node), Tensor(t, shape, DType.FLOAT32, entropy), is_top1


def _rows(tokens: int) -> int:
    return tokens if tokens < TOKENS_OF_A_TILE else TOKENS_OF_A_TILE


def _columns(vocabulary: int) -> list[int]:
    """Widths of the tiles over the vocabulary."""
    return [
        min(VOCABULARY_OF_A_TILE, int(vocabulary) - start) for start in range(0, int(vocabulary), VOCABULARY_OF_A_TILE)
    ]


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """Every tile again, and its products added up in float32."""
    x_shape, x_dtype, w_shape, w_dtype, compute = cast(tuple[Shape, DType, Shape, DType, DType], node.meta)
    kept = node.all_stored()
    tokens = x_shape[0]
    has_x, has_weight = node.edges[0] is not None, node.edges[1] is not None
    grad_x = tape.new(x_shape, DType.FLOAT32, "zeros") if has_x else None
    grad_w = tape.new(w_shape, DType.FLOAT32, "zeros") if has_weight else None
    tile = tape.alloc((_rows(tokens), VOCABULARY_OF_A_TILE), compute, "empty")
    rows = columns = None
    for size in executed_pieces(tokens, _rows(tokens)):
        rows = tape.alloc((size, x_shape[1]), compute, "_to_copy") if x_dtype is not compute else None
        for width in _columns(w_shape[0]):
            columns = tape.alloc((width, w_shape[1]), compute, "_to_copy") if w_dtype is not compute else None
            tape.use_blas()
    # The accumulators live until the function returns.
    found = (_cast(tape, grad_x, x_dtype), _cast(tape, grad_w, w_dtype))
    del grad_x, grad_w, tile, rows, columns, kept
    return found


def _cast(tape: Tape, grad: Tensor | None, dtype: DType) -> Tensor | None:
    return grad if grad is None or grad.dtype is dtype else tape.new(grad.shape, dtype, "_to_copy")
