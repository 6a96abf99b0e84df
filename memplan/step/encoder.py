"""What encoders do differently from decoders: masks over all positions, softmax in the input's type, first-token pooling.

Symbols: B micro batch, S query length, T key length, H hidden size, A attention heads, D head size, V vocabulary.

Sources: transformers 5.23 masking_utils.py (`create_bidirectional_mask`), models/bert/modeling_bert.py
(`eager_attention_forward`, `BertPooler`), torch 2.13 autocast_mode.cpp (softmax and cross_entropy run in float32).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.attention import AttentionOps, autocast_matmul, detached, flash_mask
from memplan.step.loss import LossOps, cross_entropy
from memplan.step.matmul import merge_heads, repeat_kv, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import narrow
from memplan.step.tensor import Node, Shape, Tape, Tensor


def bidirectional_mask(
    t: AttentionOps, dtype: DType, length: int | None = None, key_length: int | None = None
) -> Tensor | None:
    """None without padding; else boolean [B, 1, S, T] for sdpa, additive for eager attention.

    Args:
        t: the tape.
        dtype: of the additive mask.
        length: S; that of the running sequence where it is not given.
        key_length: T; the same.
    """
    settings = t.settings
    length, key_length = length or t.sequence, key_length or t.sequence
    if not settings.padding:
        return None
    if settings.attn_implementation == "flash_attention_2":
        return flash_mask(t)
    allowed = t.new((t.batch, 1, length, key_length), DType.BOOL, "bitwise_and")
    if settings.attn_implementation == "sdpa":
        return allowed
    mask = t.new((t.batch, 1, length, key_length), dtype, "where")
    del allowed
    return mask


def attend(
    t: AttentionOps,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    *,
    causal: bool = False,
    casts_back: bool = False,
) -> Tensor:
    """Attention of q [B, A, S, D] on k, v [B, K, T, D], as [B, S, A, D]; eager takes the softmax in the scores' own type.

    Autocast computes that softmax in float32; with `casts_back` it is brought to the values' type before the dropout (GPT-2).
    """
    if t.settings.attn_implementation != "eager":
        return t.attention(q, k, v, mask=mask, dropout=dropout, causal=causal)
    batch, heads, length, size = q.shape
    key, value = repeat_kv(t, k, heads), repeat_kv(t, v, heads)
    weights = ops.scale(t, autocast_matmul(t, q, transpose_last(t, key), (batch, heads, length, k.shape[2])))
    if mask is not None:
        weights = weights + mask
    weights = softmax(t, weights, DType.FLOAT32 if t.settings.autocast else weights.dtype)
    if casts_back:
        weights = ops.to(t, weights, v.dtype)
    weights = ops.dropout(t, weights, dropout)
    t.layer_locals.append(detached(weights))  # returned up to the layer, which drops it
    out = require_contiguous_gradient(t, autocast_matmul(t, weights, value, (batch, heads, length, size)))
    return merge_heads(t, out)


def first_token(t: AttentionOps, x: Tensor) -> Tensor:
    """`x[:, 0]`: [B, S, H] to [B, H]."""
    return narrow(t, x, (x.shape[0], x.shape[2]), "select")


def masked_lm_loss(t: LossOps, logits: Tensor, *, upcast: bool = False) -> Tensor:
    """`CrossEntropyLoss()(logits.view(-1, V), labels.view(-1))`.

    With `upcast` it is transformers' `ForMaskedLMLoss`, which casts the logits to float32 first.
    """
    t.outputs.append(detached(logits))
    with t.component(Component.LOGITS_AND_LOSS):
        rows = logits.shape[0] * logits.shape[1]
        flat = t.view(logits, (rows, logits.shape[2]))
        return cross_entropy(t, ops.to(t, flat, DType.FLOAT32) if upcast else flat, None)


def expand(t: AttentionOps, x: Tensor, shape: Shape) -> Tensor:
    """`x.expand(...)`: a view; backward sums the gradient."""
    node = t.record("expand", (x,), (), _sum_backward, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _sum_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "sum"),)


def mean_over_tokens(t: AttentionOps, x: Tensor) -> Tensor:
    """The mean of the tokens that the attention mask lets through: [B, S, H] to [B, H]."""
    mask = t.new((x.shape[0], x.shape[1], 1), DType.BOOL, "ones")
    masked = x * mask
    node = t.record("sum", (masked,), (), _expand_backward, (x.shape,))
    total = t.new((x.shape[0], x.shape[2]), x.dtype, "sum", node)
    return ops.scale(t, total, "div")


def _expand_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)
