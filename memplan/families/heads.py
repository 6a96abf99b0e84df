"""Task heads that many decoder families share, as transformers 5.23 builds them (modeling_layers.py, `GenericFor...`).

Symbols: B micro batch, S sequence length, H hidden size, V vocabulary, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Head
from memplan.recipe import Loss, Stack
from memplan.step.attention import detached
from memplan.step.builder import Builder
from memplan.step.chunked_loss import chunked_loss
from memplan.step.fused_loss import fused_linear_loss
from memplan.step.sft_loss import sft_loss
from memplan.step.split import narrow, take
from memplan.step.tensor import Dim, Tensor
from memplan.step.unsloth_loss import fused_loss

Body = Callable[[Builder], Tensor]
Finish = Callable[[Builder, Tensor], Tensor]


def causal_lm(
    t: Builder,
    body: Body,
    config: Mapping[str, Any],
    *,
    base: str,
    embedding: str,
    bias: bool = False,
    finish: Finish | None = None,
) -> Tensor:
    """`lm_head` over the vocabulary, tied to `{base}.{embedding}` where the config says so, and shifted cross-entropy.

    `finish` is what some models do to the logits before the loss (scaling, soft cap).
    """
    hidden = t.call(base, body)
    if t.cache is not None:
        hidden = narrow(t, hidden, (t.batch, 1, hidden.shape[2]), "slice")  # `logits_to_keep`
    tied_to = f"{base}.{embedding}" if config.get("tie_word_embeddings") else None
    vocabulary = Dim(config["vocab_size"], "V")
    if t.training and t.settings.loss != Loss.DEFAULT:
        return _loss_without_logits(t, hidden, vocabulary, tied_to, bias)
    logits = t.output_embedding("lm_head", hidden, vocabulary, tied_to=tied_to, bias=bias)
    if finish is not None:
        given = [logits]  # forward's variable goes on to each result
        del logits
        with t.component(Component.LOGITS_AND_LOSS):
            logits = finish(t, given.pop())
    t.outputs.append(detached(logits))
    return logits if t.cache is not None else t.causal_lm_loss(logits)


def _loss_without_logits(t: Builder, hidden: Tensor, vocabulary: Dim, tied_to: str | None, bias: bool) -> Tensor:
    """A loss that takes the hidden states and the head's own parameters; the output object holds no logits."""
    if tied_to is not None:
        t.tie("lm_head.weight", f"{tied_to}.weight")
    weight = t.parameter("lm_head", "weight", (vocabulary, hidden.shape[-1]))
    if t.settings.stack == Stack.TRL:
        assert not bias, "no walked decoder has a head with bias"
        return sft_loss(t, hidden, weight)
    if t.settings.stack == Stack.UNSLOTH:
        assert not bias, "no walked decoder has a head with bias"
        return fused_loss(t, hidden, weight)
    if t.settings.loss == Loss.CHUNKED:
        assert not bias, "no walked decoder has a head with bias"
        return chunked_loss(t, hidden, weight, "lm_head")
    return fused_linear_loss(t, hidden, weight, t.parameter("lm_head", "bias", (vocabulary,)) if bias else None)


def sequence_classification(t: Builder, body: Body, head: Head, *, base: str) -> Tensor:
    """`score` without bias on every position; the last token of each row is classified."""
    hidden = t.call(base, body)
    t.head_modules.append("score")
    logits = t.linear("score", hidden, Dim(head.num_labels, "C"))
    with t.component(Component.LOGITS_AND_LOSS):
        pooled, kept = _last_token(t, logits)
    loss = t.classification_loss(pooled)
    del kept
    return loss


def _last_token(t: Builder, logits: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`logits[arange(B), last_non_pad_token]`, [B, S, C] to [B, C], and what forward's variables hold until it returns."""
    padding = t.new((t.batch, t.sequence), DType.BOOL, "ne")
    mask = t.new((t.batch, t.sequence), DType.INT32, "_to_copy")
    del padding
    positions = t.new((t.sequence,), DType.INT32, "arange")
    product = t.new((t.batch, t.sequence), DType.INT32, "mul")
    last = t.new((t.batch,), DType.INT64, "argmax")
    del product
    rows = t.new((t.batch,), DType.INT64, "arange")
    return take(t, logits, (t.batch, logits.shape[2]), (rows, last)), (mask, positions)


def token_classification(t: Builder, body: Body, head: Head, *, base: str, dropout: float = 0.1) -> Tensor:
    """Dropout and `score` with bias on every position; `TokenClassifierOutput` has no room for past key/values."""
    hidden = t.call(base, body)
    of_body, t.outputs = t.outputs, []  # forward holds the body's outputs until it returns
    t.head_modules.append("score")
    dropped = t.dropout(hidden, dropout)
    logits = t.linear("score", dropped, Dim(head.num_labels, "C"), bias=True)
    loss = t.classification_loss(logits, upcast=True)
    del of_body
    return loss
