"""Causal masks of models that do not leave the causal pattern to the attention kernel.

Symbols: B micro batch, S sequence length.

Source: transformers 5.23 masking_utils.py (`create_causal_mask`, `sdpa_mask`, `eager_mask`).
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.step.attention import AttentionOps
from memplan.step.tensor import Tensor


def additive_causal_mask(t: AttentionOps, dtype: DType) -> Tensor:
    """[B, 1, S, S] of zeros and minus infinity, for models whose attention is written out (no sdpa)."""
    allowed = _allowed(t)
    mask = t.new((t.batch, 1, t.sequence, t.sequence), dtype, "where")
    del allowed
    return mask


def full_causal_mask(t: AttentionOps, dtype: DType) -> Tensor | None:
    """The mask under `allow_is_causal_skip=False`: for sdpa without padding a boolean [1, 1, S, S], expanded over the batch."""
    settings = t.settings
    if settings.attn_implementation == "sdpa" and not settings.padding:
        allowed = _allowed(t)
        # What sdpa makes of it is as large as its shape says.
        return Tensor(t, (t.batch, *allowed.shape[1:]), DType.BOOL, allowed.storage, is_view=True)
    return t.causal_mask(dtype)


def _allowed(t: AttentionOps) -> Tensor:
    """Where attention may look: [1, 1, S, S], with padding [B, 1, S, S]."""
    positions = [t.alloc((t.sequence,), DType.INT64, "add") for _ in range(2)]
    allowed = t.new((1, 1, t.sequence, t.sequence), DType.BOOL, "le")
    if t.settings.padding:
        both = t.new(allowed.shape, DType.BOOL, "bitwise_and")
        del allowed
        allowed = t.new((t.batch, 1, t.sequence, t.sequence), DType.BOOL, "bitwise_and")
        del both
    del positions
    return allowed
