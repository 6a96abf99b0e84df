"""torchtune's `CEWithChunkedOutputLoss`: logits and loss over chunks of the sequence, of which one at a time is cast up.

Symbols: B micro batch, S sequence length, H hidden size, V vocabulary, C positions of a chunk.

Sources: torchtune 0.6.1 modules/loss/ce_chunked_output_loss.py (`num_output_chunks` is 8 by default), modules/transformer.py
(`TransformerDecoder.chunked_output`), recipes/full_finetune_single_device.py (`_loss_step`); torch 2.13
native/LinearAlgebra.cpp (`should_fold`).

Known limits:
    Not compiled. Logits and log-probabilities of all chunks are alive together: the chunks spare casts, not logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops, split
from memplan.step.loss import LossOps, log_softmax, nll_loss
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import div

NUM_OUTPUT_CHUNKS = 8


def chunked_loss(t: LossOps, hidden: Tensor, weight: Tensor, path: str) -> Tensor:
    """The mean loss of `hidden` [B, S, H] under the head `weight` [V, H], which stands at `path`."""
    with t.component(Component.LOGITS_AND_LOSS):
        logits = _logits(t, hidden, weight, path)
        ignored = t.new((t.batch, 1), DType.INT64, "new_full")
        shifted = t.new((t.batch, hidden.shape[1]), DType.INT64, "cat")
        del ignored
        return cross_entropy_of_chunks(t, logits, shifted)


def cross_entropy_of_chunks(t: LossOps, logits: list[Tensor], shifted: Tensor) -> Tensor:
    """`CEWithChunkedOutputLoss.forward` on chunks [B, C, V] and shifted labels [B, S], which the caller holds meanwhile."""
    labels, count = _labels(t, shifted, [chunk.shape[1] for chunk in logits])
    flat = [t.view(chunk, (chunk.shape[0] * chunk.shape[1], chunk.shape[2])) for chunk in logits]
    total = None
    for chunk, label in zip(flat, labels, strict=True):
        upcast = ops.to(t, chunk, DType.FLOAT32)
        loss = nll_loss(t, log_softmax(t, upcast), label)
        del upcast
        total = ops.add_scalar(t, loss) if total is None else ops.add_in_place(t, total, loss)
        del loss
    assert total is not None
    return div(t, total, count)


def chunk_sizes(length: int) -> list[int]:
    """Positions of each chunk of `torch.chunk(8)`: fewer than 8 chunks where the length does not reach."""
    size = -(-length // NUM_OUTPUT_CHUNKS)
    count = int(-(-length // size))
    return [size] * (count - 1) + [length - size * (count - 1)]


def _logits(t: LossOps, hidden: Tensor, weight: Tensor, path: str) -> list[Tensor]:
    chunks = split.split(t, hidden, chunk_sizes(hidden.shape[1]), dim=1)
    outer, t.module = t.module, path
    found = [output_of_chunk(t, chunk, weight) for chunk in chunks]
    t.module = outer
    return found


def output_of_chunk(t: LossOps, x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` of a chunk [B, C, H], whose rows are not adjacent in memory where B is more than 1.

    A trained weight has it folded to [B·C, H], by a copy if C is more than 1; a frozen one is multiplied with batch by batch.
    Autocast's copy is dense anyhow.
    """
    if x.shape[0] == 1 or t.settings.autocast not in (None, x.dtype):
        return t.matmul(x, weight, None)
    if weight.node is not None:
        return t.matmul(x if x.shape[1] == 1 else split.copy(t, x, x.shape), weight, None)
    node = t.record("bmm", (x,), (weight,), _batched_backward, (x.shape, x.dtype))
    return t.new((*x.shape[:-1], weight.shape[0]), x.dtype, "bmm", node)


def _batched_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "bmm"),)


def _labels(t: LossOps, shifted: Tensor, sizes: list[int]) -> tuple[list[Tensor], Tensor]:
    """The labels of each chunk, and how many there are that are not ignored."""
    batch, length = shifted.shape
    mask = t.new((batch, length), DType.BOOL, "ne")
    count = t.new((), DType.INT64, "sum")
    del mask
    # A chunk of one position, or of the only row, is flat as it is.
    flat = [shifted if batch == 1 or size == 1 else t.new((batch, size), DType.INT64, "clone") for size in sizes]
    return flat, count
