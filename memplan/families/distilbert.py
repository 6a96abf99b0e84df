"""DistilBERT: BERT without token types and pooler, under other names.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, I intermediate size, P positions,
V vocabulary, C labels.

Source: transformers 5.23 models/distilbert/modeling_distilbert.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.bert import token_classifier
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
    layers: int
    activation: str
    dropout: float
    attention_dropout: float
    classifier_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["dim"], config["n_heads"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["hidden_dim"], "I"),
        positions=Dim(config["max_position_embeddings"], "P"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["n_layers"],
        activation=config["activation"],
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        classifier_dropout=config["seq_classif_dropout"],
    )


def embeddings(t: Builder, d: Dims) -> Tensor:
    """Words and positions: [B, S, H]."""
    t.buffer("position_ids", (1, d.positions), DType.INT64)
    words = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    positions = t.embedding("position_embeddings", (1, t.sequence), d.positions, d.hidden)
    x = words + positions
    x = t.layer_norm("LayerNorm", x)
    x = t.dropout(x, d.dropout)
    del words, positions
    return x


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    q = t.split_heads(t.linear("q_lin", x, d.hidden, bias=True), d.heads, d.head_size)
    k = t.split_heads(t.linear("k_lin", x, d.hidden, bias=True), d.heads, d.head_size)
    v = t.split_heads(t.linear("v_lin", x, d.hidden, bias=True), d.heads, d.head_size)
    out = attend(t, q, k, v, mask, d.attention_dropout)
    out = t.view(out, x.shape)
    return t.linear("out_lin", out, d.hidden, bias=True)


def ffn(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = t.linear("lin1", x, d.intermediate, bias=True)
    x = t.activation(d.activation, x)
    x = t.linear("lin2", x, d.hidden, bias=True)
    return t.dropout(x, d.dropout)


def block(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    attended = t.call("attention", lambda t, h: attention(t, h, d, mask), x)
    attended = t.layer_norm("sa_layer_norm", attended + x)
    forwarded = t.call("ffn", lambda t, h: ffn(t, h, d), attended)
    return t.layer_norm("output_layer_norm", forwarded + attended)


def transformer(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """The layers: x [B, S, H] to [B, S, H]."""
    return t.layers("layer", d.layers, ByPosition(lambda t, h, _: block(t, h, d, mask)), x)


def model(t: Builder, d: Dims) -> Tensor:
    """The encoder without a head: [B, S, H]."""
    embedded = t.call("embeddings", lambda t: embeddings(t, d))
    mask = bidirectional_mask(t, embedded.dtype)
    return t.call("transformer", lambda t, x: transformer(t, x, d, mask), embedded)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d)
    hidden = t.call("distilbert", lambda t: model(t, d))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        t.head_modules.append("pre_classifier")
        pooled = first_token(t, hidden)
        pooled = t.activation("relu", t.linear("pre_classifier", pooled, d.hidden, bias=True))
        return token_classifier(t, pooled, head, d.classifier_dropout)
    if head.task is Task.TOKEN_CLASSIFICATION:
        return token_classifier(t, hidden, head, d.dropout)
    t.head_modules += ["vocab_transform", "vocab_layer_norm"]
    x = t.activation(d.activation, t.linear("vocab_transform", hidden, d.hidden, bias=True))
    x = t.layer_norm("vocab_layer_norm", x)
    tied_to = "distilbert.embeddings.word_embeddings" if config["tie_word_embeddings"] else None
    logits = t.output_embedding("vocab_projector", x, d.vocabulary, tied_to=tied_to, bias=True)
    del x
    return masked_lm_loss(t, logits)


FAMILY = Family(
    forward,
    "distilbert",
    (
        Task.MASKED_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.PRE_TRAINING,
        Task.FEATURE_EXTRACTION,
    ),
    walked=frozenset({"distilbert"}),
    walked_tasks=frozenset({Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION}),
    walked_int8=False,
)
