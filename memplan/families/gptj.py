"""GPT-J: rotary embedding on pairs, attention and MLP in parallel, a head with bias, attention written out in float32.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, I intermediate size, P positions,
V vocabulary.

Source: transformers 5.23 models/gptj/modeling_gptj.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.classic_heads import decoder_head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.attention import autocast_matmul
from memplan.step.builder import Builder, given
from memplan.step.matmul import merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import concatenate, parts
from memplan.step.tensor import Dim, Tensor
from memplan.step.written_masks import additive_causal_mask


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols; `rotary_size` is the rotated part of D."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    rotary_size: int
    table_width: int
    intermediate: Dim
    positions: Dim
    vocabulary: Dim
    layers: int
    activation: str
    residual_dropout: float
    embedding_dropout: float
    attention_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["n_embd"], config["n_head"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        rotary_size=config["rotary_dim"] or hidden // heads,
        table_width=config["rotary_dim"] or hidden,
        intermediate=Dim(config["n_inner"] or 4 * hidden, "I"),
        positions=Dim(config["n_positions"], "P"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["n_layer"],
        activation=config["activation_function"],
        residual_dropout=config["resid_pdrop"],
        embedding_dropout=config["embd_pdrop"],
        attention_dropout=config["attn_pdrop"],
    )


def position_table(t: Builder, d: Dims, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`_get_embed_positions` and `gather` of every layer: sin and cos, views of one [1, S, R], and what they were made of."""
    t.buffer("embed_positions", (d.positions, d.table_width))
    table = t.new((1, d.positions, d.table_width), DType.FLOAT32, "repeat")
    indices = t.new((1, t.sequence, d.table_width), DType.INT64, "repeat")
    gathered = t.new((1, t.sequence, d.table_width), DType.FLOAT32, "gather")
    both = ops.to(t, gathered, x.dtype)
    del gathered
    half = (1, 1, t.sequence, d.table_width // 2)
    return t.view(both, half), t.view(both, half), [table, indices]


def rotate(t: Builder, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary_pos_emb`: x [B, S, A, R]; sin and cos are repeated in pairs."""
    shape = (1, t.sequence, 1, x.shape[-1])
    sin, cos = t.new(shape, sin.dtype, "repeat_interleave"), t.new(shape, cos.dtype, "repeat_interleave")
    return t.rotary(x, cos, sin)


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor) -> Tensor:
    """X [B, S, H] to [B, S, H]; scores are computed in float32."""
    q, k, v = (t.linear(name, x, d.hidden) for name in ("q_proj", "k_proj", "v_proj"))
    by_token = (x.shape[0], x.shape[1], d.heads, d.head_size)
    q, k, v = t.view(q, by_token), t.view(k, by_token), t.split_heads(v, d.heads, d.head_size)
    # Its variables keep the tables, the parts, and the projections that they are views of, until the block returns.
    sin, cos, tables = position_table(t, d, k)
    k_rotated, k_passed = parts(t, k, d.rotary_size)
    q_rotated, q_passed = parts(t, q, d.rotary_size)
    k_rotated, q_rotated = rotate(t, k_rotated, cos, sin), rotate(t, q_rotated, cos, sin)
    k, q = concatenate(t, (k_rotated, k_passed), by_token), concatenate(t, (q_rotated, q_passed), by_token)
    heads_first = (x.shape[0], d.heads, x.shape[1], d.head_size)
    k, q = t.view(k, heads_first, by_token=True), t.view(q, heads_first, by_token=True)
    k, v = t.cache_key_values(k, v)
    out = attend(t, q, k, v, mask, d)
    out = t.view(merge_heads(t, out), (*x.shape[:-1], d.hidden))
    out = t.dropout(t.linear("out_proj", out, d.hidden), d.residual_dropout)
    del tables
    return out


def attend(t: Builder, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, d: Dims) -> Tensor:
    """`_attn`: q, k, v [B, A, S, D] to [B, A, S, D]."""
    q, k = ops.to(t, q, DType.FLOAT32), ops.to(t, k, DType.FLOAT32)
    weights = autocast_matmul(t, q, transpose_last(t, k), (*q.shape[:-1], k.shape[2]))
    weights = ops.scale(t, weights, "div")
    weights = weights + mask
    weights = softmax(t, weights, DType.FLOAT32)
    weights = ops.to(t, weights, v.dtype)
    weights = t.dropout(weights, d.attention_dropout)
    t.layer_locals.append(weights)  # which the block returns
    return require_contiguous_gradient(t, autocast_matmul(t, weights, v, q.shape))


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = t.linear("fc_in", x, d.intermediate, bias=True)
    x = t.activation(d.activation, x)
    x = t.linear("fc_out", x, d.hidden, bias=True)
    return t.dropout(x, d.residual_dropout)


def block(t: Builder, x: Tensor, d: Dims, mask: Tensor) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.layer_norm("ln_1", x)
    attended = t.call("attn", lambda t, h: attention(t, h, d, mask), x)
    forwarded = t.call("mlp", lambda t, h: mlp(t, h, d), x)
    return attended + forwarded + residual


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    embedded = t.input_embedding("wte", (t.batch, t.sequence), d.vocabulary, d.hidden)
    position_ids = t.position_ids(t.sequence)
    mask = additive_causal_mask(t, embedded.dtype)
    x = t.dropout(embedded, d.embedding_dropout)
    outputs: list[Tensor | None] = []
    x = t.layers("h", d.layers, given(lambda t, h, _: block(t, h, d, mask), position_ids), x, returned=outputs)
    x = t.layer_norm("ln_f", x)
    del embedded, position_ids, outputs
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return decoder_head(t, lambda t: model(t, config), config, head, base="transformer", embedding="wte", bias=True)


FAMILY = Family(
    forward,
    "transformer",
    (Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.FEATURE_EXTRACTION),
    walked=frozenset({"gptj"}),
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    walked_int8=False,
)
