"""Two sequences in one step: the encoder's of length S, the decoder's of length T.

Symbols: B micro batch, S source length, T target length, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memplan.dtypes import DType
from memplan.step.builder import Builder
from memplan.step.encoder import first_token
from memplan.step.tensor import Tensor


@contextmanager
def target_side(t: Builder) -> Iterator[None]:
    """Inside, `t.sequence` is the target's length (`target_sequence`; the source's own where that is 0)."""
    source = t.sequence
    t.sequence = t.target_sequence
    try:
        yield
    finally:
        t.sequence = source


def shifted_labels(t: Builder) -> Tensor:
    """`shift_tokens_right(labels)`: the decoder's input ids, int64 [B, T]."""
    return t.new((t.batch, t.sequence), DType.INT64, "new_zeros")


def end_of_sentence(t: Builder, x: Tensor) -> Tensor:
    """The hidden state of each row's last end-of-sentence token: [B, T, H] to [B, H]."""
    return first_token(t, x)
