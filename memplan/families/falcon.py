"""Falcon: fused heads with one key/value head (7B) or groups of them (40B), attention and MLP in parallel, rotary or alibi.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size, I intermediate
size, V vocabulary.

Source: transformers 5.23 models/falcon/modeling_falcon.py.

Known limits:
    With alibi (Falcon-RW) parameters are exact, the step is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.classic_heads import DECODER_TASKS, decoder_head, token_classifier_dropout
from memplan.step import ops
from memplan.step.alibi import alibi_bias
from memplan.step.attention_kernels import plain_sdpa
from memplan.step.builder import Builder, given
from memplan.step.encoder import expand
from memplan.step.matmul import expand_kv, matmul, merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import copy, narrow, take, turned
from memplan.step.tensor import Dim, Shape, Tensor
from memplan.step.written_masks import full_causal_mask


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols; `grouped` is the new decoder architecture."""

    hidden: Dim
    heads: Dim
    kv_heads: Dim
    head_size: Dim
    intermediate: Dim
    vocabulary: Dim
    layers: int
    activation: str
    bias: bool
    grouped: bool
    multi_query: bool
    parallel: bool
    two_norms: bool
    alibi: bool
    attention_dropout: float
    hidden_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    grouped, multi_query = config["new_decoder_architecture"], config["multi_query"]
    norms = config["num_ln_in_parallel_attn"] or (2 if grouped else 1)
    kv_heads = config["num_kv_heads"] if grouped else 1 if multi_query else heads
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        kv_heads=Dim(kv_heads, "K"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["ffn_hidden_size"], "I"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["num_hidden_layers"],
        activation=config["activation"],
        bias=config["bias"],
        grouped=grouped,
        multi_query=multi_query,
        parallel=config["parallel_attn"],
        two_norms=config["parallel_attn"] and norms == 2,
        alibi=config["alibi"],
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
    )


def split_fused(t: Builder, fused: Tensor, d: Dims) -> tuple[Tensor, Tensor, Tensor]:
    """`_split_heads`: queries [B, A, S, D], keys and values [B, A or 1, S, D]."""
    batch, length, _ = fused.shape
    full = (batch, length, d.heads, d.head_size)
    if d.grouped:
        group = d.heads // d.kv_heads
        fused = t.view(fused, (batch, length, d.kv_heads, group + 2, d.head_size))
        q = copy(t, narrow(t, fused, (batch, length, d.kv_heads, group, d.head_size)), full)
        k, v = (last(t, fused, (batch, length, d.kv_heads, 1, d.head_size)) for _ in range(2))
        k, v = (expand(t, x, (batch, length, d.kv_heads, group, d.head_size)) for x in (k, v))
        k, v = copy(t, k, full), copy(t, v, full)
        return turned(t, q), turned(t, k), turned(t, v)
    if d.multi_query:
        fused = t.view(fused, (batch, length, d.heads + 2, d.head_size))
        one = (batch, length, 1, d.head_size)
        q, k, v = narrow(t, fused, full), last(t, fused, one), last(t, fused, one)
        return turned(t, q), turned(t, k), turned(t, v)
    fused = t.view(fused, (batch, length, d.heads, 3, d.head_size))
    q, k, v = (turned(t, narrow(t, fused, full, "select")) for _ in range(3))
    return q, k, v


def last(t: Builder, x: Tensor, shape: Shape) -> Tensor:
    """`x[..., [-1], :]`: the list becomes a tensor of one index, which goes to the device."""
    return take(t, x, shape, (t.new((1,), DType.INT64, "_to_copy"),))


def eager(t: Builder, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dtype: DType) -> Tensor:
    """Scores, divided in place, and their softmax in the hidden states' `dtype`: [B, S, A, D]."""
    batch, heads, length, size = q.shape
    autocast = t.settings.autocast or q.dtype
    query, key = ops.to(t, q, autocast), expand_kv(t, ops.to(t, transpose_last(t, k), autocast), heads)
    scores = ops.divide_in_place(t, matmul(t, query, key, (batch, heads, length, k.shape[2])))
    del query, key
    weights = softmax(t, scores + mask, dtype)
    t.layer_locals.append(weights)  # which the block returns
    lowered, value = ops.to(t, weights, autocast), expand_kv(t, ops.to(t, v, autocast), heads)
    out = require_contiguous_gradient(t, matmul(t, lowered, value, (batch, heads, length, size)))
    return merge_heads(t, out)


def attention(t: Builder, x: Tensor, d: Dims, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    fused_size = d.hidden + d.kv_heads * d.head_size * 2
    fused = t.linear("query_key_value", x, fused_size, bias=d.bias, class_name="FalconLinear")
    q, k, v = split_fused(t, fused, d)
    if rotary is not None:
        q, k = t.apply_rotary_pos_emb(q, k, *rotary)
    k, v = t.cache_key_values(k, v)
    if t.settings.attn_implementation == "eager":
        assert mask is not None
        out = eager(t, q, k, v, mask, x.dtype)
    else:
        out = plain_sdpa(t, q, k, v, mask, t.settings, d.attention_dropout if d.alibi else 0.0)
    out = t.view(out, (*x.shape[:-1], d.hidden))
    return t.linear("dense", out, d.hidden, bias=d.bias, class_name="FalconLinear")


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = t.activation(d.activation, t.linear("dense_h_to_4h", x, d.intermediate, bias=d.bias, class_name="FalconLinear"))
    return t.linear("dense_4h_to_h", x, d.hidden, bias=d.bias, class_name="FalconLinear")


def layer(t: Builder, x: Tensor, d: Dims, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    before_attention = t.layer_norm("ln_attn" if d.two_norms else "input_layernorm", x)
    before_mlp = t.layer_norm("ln_mlp", x) if d.two_norms else before_attention
    attended = t.call("self_attention", lambda t, h: attention(t, h, d, rotary, mask), before_attention)
    if not d.parallel:
        residual = residual + t.dropout(attended, d.attention_dropout)
        before_mlp = t.layer_norm("post_attention_layernorm", residual)
    out = t.call("mlp", lambda t, h: mlp(t, h, d), before_mlp)
    if d.grouped or d.parallel:
        out = out + attended
    return residual + t.dropout(out, d.hidden_dropout)


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    embedded = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    alibi = alibi_bias(t, d.heads, embedded.dtype)[0] if d.alibi else None
    position_ids = t.position_ids(t.sequence)
    if alibi is None:
        mask = full_causal_mask(t, embedded.dtype)
    else:
        mask = t.new((t.batch, d.heads, t.sequence, t.sequence), embedded.dtype, "masked_fill")
    for name in ("inv_freq", "original_inv_freq"):
        t.buffer(f"rotary_emb.{name}", ((d.head_size + 1) // 2,))
    table = t.rotary_table(embedded.dtype, d.head_size, t.sequence)  # made with alibi, too
    rotary = None if d.alibi else table
    outputs: list[Tensor | None] = []
    x = t.layers(
        "h", d.layers, given(lambda t, h, _: layer(t, h, d, rotary, mask), position_ids), embedded, returned=outputs
    )
    x = t.layer_norm("ln_f", x)
    del embedded, alibi, position_ids, table, outputs
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


FAMILY = Family(forward, "transformer", DECODER_TASKS, walked=frozenset({"falcon"}))
