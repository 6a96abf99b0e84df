"""Bloom: alibi instead of positions, a norm on the embeddings, fused heads, attention written out.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, V vocabulary.

Source: transformers 5.23 models/bloom/modeling_bloom.py.

Known limits:
    No `slow_but_exact` with `pretraining_tp` above 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.classic_heads import DECODER_TASKS, decoder_head, token_classifier_dropout
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.alibi import alibi_bias, baddbmm, bloom_gelu
from memplan.step.attention import autocast_matmul
from memplan.step.builder import Builder
from memplan.step.matmul import merge_heads, require_contiguous_gradient, softmax
from memplan.step.split import copy, narrow
from memplan.step.tensor import Dim, Shape, Tensor
from memplan.step.written_masks import additive_causal_mask


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    vocabulary: Dim
    layers: int
    residual_after_norm: bool
    attention_dropout: float
    hidden_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["n_head"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["n_layer"],
        residual_after_norm=config["apply_residual_connection_post_layernorm"],
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
    )


def fold_heads(t: Builder, x: Tensor, shape: Shape) -> Tensor:
    """`reshape` of [B, A, S, D] to [B·A, S, D]: a copy of what was selected from the fused heads of several sequences."""
    return copy(t, x, shape) if x.is_view and x.shape[0] != 1 else t.view(x, shape)


def attention(t: Builder, x: Tensor, residual: Tensor, d: Dims, alibi: Tensor, mask: Tensor) -> Tensor:
    """X [B, S, H] to [B, S, H], the residual added."""
    batch, length, _ = x.shape
    fused = t.linear("query_key_value", x, 3 * d.hidden, bias=True)
    fused = t.view(fused, (batch, length, d.heads, 3, d.head_size))
    q, k, v = (narrow(t, fused, (batch, d.heads, length, d.head_size), "select") for _ in range(3))
    k, v = t.cache_key_values(k, v)
    flat = (batch * d.heads, length, d.head_size)
    q, k, v = fold_heads(t, q, flat), fold_heads(t, k, flat), fold_heads(t, v, flat)
    square = (batch, d.heads, length, length)
    scores = baddbmm(t, alibi, q, k, (batch * d.heads, length, length))
    weights = t.view(scores, square) + mask
    probabilities = ops.to(t, softmax(t, weights, DType.FLOAT32), q.dtype)
    probabilities = t.dropout(probabilities, d.attention_dropout)
    t.layer_locals.append(probabilities)  # which the block returns
    heads = (batch, d.heads, length, d.head_size)
    out = require_contiguous_gradient(t, autocast_matmul(t, probabilities, t.view(v, heads), heads))
    out = t.view(merge_heads(t, out), x.shape)
    out = t.linear("dense", out, d.hidden, bias=True)
    return residual + t.dropout(out, d.hidden_dropout)


def mlp(t: Builder, x: Tensor, residual: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H], the residual added."""
    x = bloom_gelu(t, t.linear("dense_h_to_4h", x, 4 * d.hidden, bias=True))
    out = t.linear("dense_4h_to_h", x, d.hidden, bias=True)
    return residual + t.dropout(out, d.hidden_dropout)


def block(t: Builder, x: Tensor, d: Dims, alibi: Tensor, mask: Tensor) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    normed = t.layer_norm("input_layernorm", x)
    residual = normed if d.residual_after_norm else x
    attended = t.call("self_attention", lambda t, h, r: attention(t, h, r, d, alibi, mask), normed, residual)
    normed = t.layer_norm("post_attention_layernorm", attended)
    residual = normed if d.residual_after_norm else attended
    return t.call("mlp", lambda t, h, r: mlp(t, h, r, d), normed, residual)


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    embedded = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    # Forward's variable goes on to the first block's result.
    start = [t.layer_norm("word_embeddings_layernorm", embedded)]
    alibi, slopes = alibi_bias(t, d.heads, start[0].dtype)
    mask = additive_causal_mask(t, embedded.dtype)
    outputs: list[Tensor | None] = []
    x = t.layers("h", d.layers, lambda t, h, _: block(t, h, d, alibi, mask), start.pop(), returned=outputs)
    x = t.layer_norm("ln_f", x)
    del embedded, slopes, outputs
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return decoder_head(
        t,
        lambda t: model(t, config),
        config,
        head,
        base="transformer",
        embedding="word_embeddings",
        classifier_dropout=token_classifier_dropout(config),
    )


FAMILY = Family(
    forward,
    "transformer",
    DECODER_TASKS,
    walked=frozenset({"bloom"}),
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    walked_int8=False,
)
