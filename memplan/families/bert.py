"""BERT, and the encoder that RoBERTa and XLM-RoBERTa share with it.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, I intermediate size, P positions,
V vocabulary, C labels.

Source: transformers 5.23 models/bert/modeling_bert.py.

Known limits:
    No cross-attention (`add_cross_attention`) and no chunked feed-forward (`chunk_size_feed_forward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.recipe import Task
from memplan.step.builder import Builder, ByPosition
from memplan.step.encoder import attend, bidirectional_mask, first_token, masked_lm_loss
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one encoder, with their symbols."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    positions: Dim
    vocabulary: Dim
    token_types: int
    layers: int
    activation: str
    dropout: float
    attention_dropout: float
    classifier_dropout: float
    decoder: bool
    tied: bool


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads, dropout = config["hidden_size"], config["num_attention_heads"], config["hidden_dropout_prob"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["intermediate_size"], "I"),
        positions=Dim(config["max_position_embeddings"], "P"),
        vocabulary=Dim(config["vocab_size"], "V"),
        token_types=config["type_vocab_size"],
        layers=config["num_hidden_layers"],
        activation=config["hidden_act"],
        dropout=dropout,
        attention_dropout=config["attention_probs_dropout_prob"],
        classifier_dropout=dropout if config["classifier_dropout"] is None else config["classifier_dropout"],
        decoder=config["is_decoder"],
        tied=config["tie_word_embeddings"],
    )


# -- encoder ----------------------------------------------------------------------------------------------


def embeddings(t: Builder, d: Dims) -> Tensor:
    """Words, token types and positions: [B, S, H]."""
    for name in ("position_ids", "token_type_ids"):
        t.buffer(name, (1, d.positions), DType.INT64)
    token_types = t.new((1, t.sequence), DType.INT64, "gather")
    words = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    types = t.embedding("token_type_embeddings", (t.batch, t.sequence), d.token_types, d.hidden, indices=token_types)
    x = words + types
    positions = t.embedding("position_embeddings", (1, t.sequence), d.positions, d.hidden)
    x = x + positions
    x = t.layer_norm("LayerNorm", x)
    x = t.dropout(x, d.dropout)
    del token_types, words, types, positions
    return x


def self_attention(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    q = t.split_heads(t.linear("query", x, d.hidden, bias=True), d.heads, d.head_size)
    k = t.split_heads(t.linear("key", x, d.hidden, bias=True), d.heads, d.head_size)
    v = t.split_heads(t.linear("value", x, d.hidden, bias=True), d.heads, d.head_size)
    if d.decoder:
        k, v = t.cache_key_values(k, v)
    out = attend(t, q, k, v, mask, d.attention_dropout, causal=d.decoder)
    return t.view(out, x.shape)


def output(t: Builder, x: Tensor, residual: Tensor, d: Dims) -> Tensor:
    """`BertSelfOutput` and `BertOutput`: back to [B, S, H], the residual added, normed."""
    x = t.linear("dense", x, d.hidden, bias=True)
    x = t.dropout(x, d.dropout)
    return t.layer_norm("LayerNorm", x + residual)


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    attended = t.call("self", lambda t, h: self_attention(t, h, d, mask), x)
    return t.call("output", lambda t, h, r: output(t, h, r, d), attended, x)


def intermediate(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, I]."""
    return t.activation(d.activation, t.linear("dense", x, d.intermediate, bias=True))


def layer(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    attended = t.call("attention", lambda t, h: attention(t, h, d, mask), x)
    wide = t.call("intermediate", lambda t, h: intermediate(t, h, d), attended)
    return t.call("output", lambda t, h, r: output(t, h, r, d), wide, attended)


def self_attention_mask(t: Builder, embedded: Tensor, d: Dims) -> Tensor | None:
    """Causal where the config says that this is a decoder."""
    return t.causal_mask(embedded.dtype) if d.decoder else bidirectional_mask(t, embedded.dtype)


def encoder(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """The layers: x [B, S, H] to [B, S, H]."""
    return t.layers("layer", d.layers, ByPosition(lambda t, h, _: layer(t, h, d, mask)), x)


def encode(t: Builder, d: Dims) -> Tensor:
    """Embeddings and layers: [B, S, H]."""
    embedded = t.call("embeddings", lambda t: embeddings(t, d))
    mask = self_attention_mask(t, embedded, d)
    return t.call("encoder", lambda t, x: encoder(t, x, d, mask), embedded)


def pooler(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """The first token through a linear and tanh: [B, H]."""
    return t.activation("tanh", t.linear("dense", first_token(t, x), d.hidden, bias=True))


# -- heads ------------------------------------------------------------------------------------------------


def transform(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`BertPredictionHeadTransform`: [B, S, H]."""
    return t.layer_norm("LayerNorm", t.activation(d.activation, t.linear("dense", x, d.hidden, bias=True)))


def predictions(t: Builder, x: Tensor, d: Dims, embedding: str) -> Tensor:
    """`BertLMPredictionHead`: [B, S, V]. Its bias and the decoder's are one parameter where weights are tied."""
    t.bare("bias", (d.vocabulary,), owner_class="BertLMPredictionHead")
    if d.tied:
        t.tie(t.join("decoder.bias"), t.join("bias"))
    x = t.call("transform", lambda t, h: transform(t, h, d), x)
    return t.output_embedding("decoder", x, d.vocabulary, tied_to=embedding if d.tied else None, bias=True)


def token_classifier(t: Builder, hidden: Tensor, head: Head, dropout: float) -> Tensor:
    """Dropout and `classifier` on every position or on the pooled token, then the loss."""
    t.head_modules.append("classifier")
    logits = t.linear("classifier", t.dropout(hidden, dropout), Dim(head.num_labels, "C"), bias=True)
    return t.classification_loss(logits)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)

    def pooled(t: Builder, x: Tensor) -> Tensor:
        return t.call("bert.pooler", lambda t, x: pooler(t, x, d), x)

    if head.task is Task.FEATURE_EXTRACTION:
        hidden = encode(t, d)
        t.call("pooler", lambda t, x: pooler(t, x, d), hidden)
        return hidden
    hidden = t.call("bert", lambda t: encode(t, d))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        return token_classifier(t, pooled(t, hidden), head, d.classifier_dropout)
    if head.task is Task.TOKEN_CLASSIFICATION:
        return token_classifier(t, hidden, head, d.classifier_dropout)
    t.head_modules.append("cls")
    first = pooled(t, hidden) if head.task is Task.PRE_TRAINING else None

    def mlm(t: Builder, x: Tensor) -> Tensor:
        return t.call("predictions", lambda t, x: predictions(t, x, d, "bert.embeddings.word_embeddings"), x)

    logits = t.call("cls", mlm, hidden)
    if head.task is Task.CAUSAL_LM:
        return t.causal_lm_loss(logits)
    if first is None:
        return masked_lm_loss(t, logits)
    order = t.call("cls", lambda t, x: t.linear("seq_relationship", x, 2, bias=True), first)
    return masked_lm_loss(t, logits) + t.classification_loss(order)


FAMILY = Family(
    forward,
    "bert",
    (
        Task.MASKED_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.PRE_TRAINING,
        Task.CAUSAL_LM,
        Task.FEATURE_EXTRACTION,
    ),
    walked=frozenset({"bert"}),
    walked_tasks=frozenset({Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION}),
    walked_int8=False,
)
