"""Unsloth's loss: logits by pieces, or by tiles of the vocabulary, and the hidden states' gradient in the forward pass.

Symbols: T tokens of the row (B texts of S tokens), N tokens with a label, T-B, H hidden size, V vocabulary.

Sources: unsloth_zoo 2026.10.9 fused_losses/cross_entropy_loss.py (`unsloth_fused_ce_loss`), chunked_logprob.py
(`unsloth_chunked_ce_loss`), fused_linear.py (`fused_linear_cross_entropy`, `_ce_impl`, `_tiled_forward`); unsloth 2026.10.9
utils/packing.py (`mask_packed_boundary_labels`).

Known limits:
    A frozen 16-bit head without bias, and more than 4 GiB free when the first loss is computed: with less the pieces are
    smaller. What selecting by a mask sorts inside is left out. Of pieces that are alike only the first two are executed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.dim import executed_pieces
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor

if TYPE_CHECKING:
    from memplan.step.builder import Builder

# fused_linear.py: `_MIN_LOGITS`, `_MAX_ROWS`, `_CHUNK_GB`, `_SPLIT_COLS`, `_SMALL_CARD_BYTES`.
_LEAST_LOGITS = 512 * 151936
_MOST_ROWS = 4096
_BUDGET_BYTES = 2 * 2**30
_SPLIT_COLUMNS = 16384
SMALL_CARD_BYTES = int(24.5 * 2**30)
# From so many tokens on the vocabulary is cut into tiles; on a small card always.
_TILED_FROM = 4096


def fused_loss(t: Builder, hidden: Tensor, weight: Tensor) -> Tensor:
    """The mean loss of hidden [1, T, H] under the head's weight [V, H]."""
    with t.component(Component.LOGITS_AND_LOSS):
        tokens = hidden.shape[1]
        labels = _masked_labels(t, tokens)
        first = t.alloc((1, 1), DType.INT64, "full_like")
        targets = t.alloc((1, tokens), DType.INT64, "cat")
        del first
        count = t.alloc((), DType.FLOAT32, "_to_copy")
        divisor = _nonzero(t)
        del count
        divided = _nonzero(t)
        scaling = t.alloc((), DType.FLOAT32, "ones")
        outer, t.grad_enabled = t.grad_enabled, False
        loss, gradient = _cross_entropy(t, hidden, weight)
        t.grad_enabled = outer
        node = t.record("fused_linear_ce", (hidden,), (gradient, scaling), _backward, (hidden.shape, hidden.dtype))
        del divided, targets, divisor, labels
        return Tensor(t, (), DType.FLOAT32, loss, node)


def _masked_labels(t: Builder, tokens: int) -> Storage:
    """`mask_packed_boundary_labels`: the labels without each text's first token."""
    lengths = t.alloc((t.batch,), DType.INT64, "_to_copy")
    ends = t.alloc((t.batch,), DType.INT64, "cumsum")
    inside = t.alloc((t.batch,), DType.BOOL, "lt")
    zeros = t.alloc((t.batch,), DType.INT64, "zeros_like")
    positions = t.alloc((t.batch,), DType.INT64, "where")
    del inside, zeros, ends
    labels = t.alloc((tokens,), DType.INT64, "index_fill")
    del lengths, positions
    return labels


def _nonzero(t: Tape) -> Storage:
    """`torch.where(x == 0, torch.ones_like(x), x)` of a scalar."""
    zero = t.alloc((), DType.BOOL, "eq")
    one = t.alloc((), DType.FLOAT32, "ones_like")
    out = t.alloc((), DType.FLOAT32, "where")
    del zero, one
    return out


def _cross_entropy(t: Builder, hidden: Tensor, weight: Tensor) -> tuple[Storage, Storage]:
    """`_ce_checked` and `_ce_impl`: the loss, and the gradient of `hidden`."""
    _, tokens, width = hidden.shape
    bad, checked = _checks(t, tokens)
    keep = t.alloc((tokens,), DType.BOOL, "__and__")
    # Texts of one token have none, and are refused; the bounds of a plan ask for them all the same.
    labelled = max(tokens - t.batch, 1)
    index = t.alloc((labelled, 1), DType.INT64, "nonzero")
    del keep
    gradient = t.alloc((tokens, width), hidden.dtype, "zeros")
    zero = t.alloc((), DType.FLOAT32, "zeros")
    factor = t.alloc((), DType.FLOAT32, "div")
    log_probabilities = t.alloc((labelled,), DType.FLOAT32, "empty")
    vocabulary = weight.shape[0]
    held: tuple[object, ...] = ()
    if -(-vocabulary // _SPLIT_COLUMNS) > 2 and (t.settings.small_card or labelled >= _TILED_FROM):
        _tiled(t, hidden, labelled, vocabulary)
    else:
        held = _chunked(t, hidden, labelled, vocabulary, factor)
        del factor
        factor = t.alloc((), DType.FLOAT32, "exp2")
    wide = t.alloc((labelled,), DType.FLOAT64, "to")
    negative = t.alloc((labelled,), DType.FLOAT64, "neg")
    del wide
    scalars = [t.alloc((), DType.FLOAT64, name) for name in ("sum", "to")]
    quotient = t.alloc((), DType.FLOAT64, "div")
    del scalars
    loss = t.alloc((), DType.FLOAT32, "to")
    del quotient, zero, index, factor, log_probabilities, held, negative, bad, checked
    return loss, gradient


def _checks(t: Tape, tokens: int) -> tuple[Storage, Storage]:
    """`bad` and `ok` of `_ce_checked`, which live until it returns."""
    labelled = t.alloc((tokens,), DType.BOOL, "ne")
    bounds = [t.alloc((tokens,), DType.BOOL, name) for name in ("lt", "ge")]
    outside = t.alloc((tokens,), DType.BOOL, "__or__")
    del bounds
    bad = t.alloc((tokens,), DType.BOOL, "__and__")
    del labelled, outside
    found = t.alloc((), DType.BOOL, "any")
    checked = t.alloc((), DType.BOOL, "logical_not")
    del found
    return bad, checked


def piece_rows(labelled: int, width: int, vocabulary: int) -> int:
    """`fused_linear_rows` for float32 logits: a power of two by H / V, between bounds, within the budget."""
    rows = _MOST_ROWS
    while rows > 512 and rows * vocabulary > _LEAST_LOGITS:
        rows //= 2
    while rows < _MOST_ROWS and rows * 2 * vocabulary <= labelled * width:
        rows *= 2
    rows = min(rows, max(_BUDGET_BYTES // (vocabulary * DType.FLOAT32.itemsize_bytes), 2))
    return labelled if labelled < rows else rows


def _chunked(t: Builder, hidden: Tensor, labelled: int, vocabulary: int, factor: Storage) -> tuple[object, ...]:
    """Logits of piece after piece in one buffer; returns what the function's variables hold until it is done."""
    width, dtype = hidden.shape[2], hidden.dtype
    rows = piece_rows(labelled, int(width), int(vocabulary))
    buffer = t.alloc((rows, -(-vocabulary // 8) * 8), DType.FLOAT32, "empty")
    logarithm = t.alloc((), DType.FLOAT32, "log2")
    rounded = t.alloc((), DType.FLOAT32, "round")
    del logarithm
    power = t.alloc((), DType.FLOAT32, "exp2")
    del rounded
    ratio = t.alloc((), DType.FLOAT32, "div")
    del power
    x = targets = sums = product = None
    splits = -(-vocabulary // _SPLIT_COLUMNS)
    for size in executed_pieces(labelled, rows):
        x = t.alloc((size, width), dtype, "index_select")
        targets = t.alloc((size,), DType.INT64, "index_select")
        t.use_blas()
        made = t.alloc((size,), DType.FLOAT32, "empty")
        if splits > 2:
            t.alloc((7, splits, size), DType.FLOAT32, "empty")
        t.alloc((), DType.FLOAT32, "neg")
        sums = made
        del made
        product = t.alloc((size, width), DType.FLOAT32, "mm")
        t.alloc((size, width), dtype, "to")
    return (ratio, x, targets, sums, product, buffer)


def _tiled(t: Builder, hidden: Tensor, labelled: int, vocabulary: int) -> None:
    """`_tiled_forward` with the gradient: one buffer of some rows and a split of the vocabulary."""
    width = hidden.shape[2]
    rows = labelled if labelled < _MOST_ROWS else _MOST_ROWS
    sums = t.alloc((labelled,), DType.FLOAT32, "empty")
    negative = t.alloc((), DType.FLOAT32, "neg")
    buffer = t.alloc((rows, _SPLIT_COLUMNS), DType.FLOAT32, "empty")
    accumulator = t.alloc((rows, width), DType.FLOAT32, "empty")
    highest = t.alloc((rows,), DType.FLOAT32, "empty")
    x = targets = part = None
    for size in executed_pieces(labelled, rows):
        x = t.alloc((size, width), hidden.dtype, "index_select")
        targets = t.alloc((size,), DType.INT64, "index_select")
        part = t.alloc((8, -(-vocabulary // _SPLIT_COLUMNS), size), DType.FLOAT32, "empty")
        t.use_blas()
    del buffer, accumulator, highest, x, targets, part, sums, negative


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """`_ce_backward`: the gradient, scaled into a tensor of its own."""
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    wide = [tape.alloc((), DType.FLOAT64, "_to_copy") for _ in range(2)]
    scale = tape.alloc((), DType.FLOAT64, "div")
    del wide
    narrow = tape.alloc((), DType.FLOAT32, "to")
    out = tape.new(shape, dtype, "empty")
    out.is_view = True  # made as [T, H]
    del narrow, scale, kept
    return (out,)
