"""DeBERTa's sizes, its disentangled attention in the first and second version, and the norm of the first.

Symbols: B micro batch, S sequence length, H hidden size, E word embedding size, A attention heads, D head size,
I intermediate size, R relative positions (both directions), P positions, V vocabulary.

Source: transformers 5.23 models/deberta/modeling_deberta.py and models/deberta_v2/modeling_deberta_v2.py
(`DisentangledSelfAttention`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention import autocast_matmul
from memplan.step.builder import Builder
from memplan.step.disentangled import clamped_positions, gather, masked_fill, repeat
from memplan.step.matmul import merge_heads, require_contiguous_gradient, softmax
from memplan.step.split import copy, narrow, split
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one encoder, with their symbols; `version` 1 has fused projections and a norm of its own."""

    version: int
    hidden: Dim
    word: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    positions: Dim
    relative: Dim
    bucketed: bool
    vocabulary: Dim
    token_types: int
    layers: int
    activation: str
    conv_kernel: int
    conv_groups: int
    conv_activation: str
    relative_attention: bool
    biases: tuple[str, ...]
    share_keys: bool
    talking_head: bool
    norm_relative: bool
    input_positions: bool
    dropout: float
    attention_dropout: float
    tied: bool


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    second = config["model_type"] == "deberta-v2"
    buckets = config.get("position_buckets", -1) if second else -1
    span = config["max_relative_positions"]
    span = config["max_position_embeddings"] if span < 1 else span
    return Dims(
        version=2 if second else 1,
        hidden=Dim(hidden, "H"),
        word=Dim(config.get("embedding_size", hidden), "E"),
        heads=Dim(heads, "A"),
        head_size=Dim(config.get("attention_head_size", hidden // heads) if second else hidden // heads, "D"),
        intermediate=Dim(config["intermediate_size"], "I"),
        positions=Dim(config["max_position_embeddings"], "P"),
        relative=Dim(2 * (buckets if buckets > 0 else span), "R"),
        bucketed=buckets > 0,
        vocabulary=Dim(config["vocab_size"], "V"),
        token_types=config["type_vocab_size"],
        layers=config["num_hidden_layers"],
        activation=config["hidden_act"],
        conv_kernel=config.get("conv_kernel_size", 0) if second else 0,
        conv_groups=config.get("conv_groups", 1),
        conv_activation=config.get("conv_act", "tanh"),
        relative_attention=config["relative_attention"],
        biases=tuple(config.get("pos_att_type") or ()),
        share_keys=second and config.get("share_att_key", False),
        talking_head=not second and config.get("talking_head", False),
        norm_relative=second and "layer_norm" in [part.strip() for part in _norm_names(config)],
        input_positions=config["position_biased_input"],
        dropout=config["hidden_dropout_prob"],
        attention_dropout=config["attention_probs_dropout_prob"],
        tied=config["tie_word_embeddings"],
    )


def _norm_names(config: Mapping[str, Any]) -> list[str]:
    names: str = config.get("norm_rel_ebd", "none")
    return names.lower().split("|")


@dataclass(frozen=True, slots=True)
class Positions:
    """What every layer gets: the relative positions [1, S, S] and their embeddings [R, H]."""

    index: Tensor
    embeddings: Tensor


# -- version 2 --------------------------------------------------------------------------------------------


def attention_v2(t: Builder, x: Tensor, d: Dims, mask: Tensor, positions: Positions | None) -> Tensor:
    """X [B, S, H] to [B, S, A·D]; heads are folded into the batch."""
    batch, length, _ = x.shape
    flat = (batch * d.heads, length, d.head_size)
    square = (batch * d.heads, length, length)
    q, k, v = (
        copy(t, t.linear(name, x, d.heads * d.head_size, bias=True), flat)
        for name in ("query_proj", "key_proj", "value_proj")
    )
    scores = autocast_matmul(t, q, ops.scale(t, k, "div"), square)
    rows = bias = None  # variables of forward, as the mask and the scores are
    if positions is not None:
        rows = t.dropout(positions.embeddings, d.dropout)
        bias = position_bias_v2(t, q, k, d, rows, positions.index)
        scores = scores + bias
    scores = t.view(scores, (batch, d.heads, length, length))
    boolean = t.new(mask.shape, DType.BOOL, "_to_copy")
    scores = masked_fill(t, scores, boolean)
    probabilities = softmax(t, scores, DType.FLOAT32 if t.settings.autocast else scores.dtype)
    probabilities = t.dropout(probabilities, d.attention_dropout)
    out = autocast_matmul(t, t.view(probabilities, square), v, flat)
    out = merge_heads(t, t.view(out, (batch, d.heads, length, d.head_size)))
    del rows, bias, boolean
    return t.view(out, (batch, length, d.heads * d.head_size))


def position_bias_v2(t: Builder, q: Tensor, k: Tensor, d: Dims, rows: Tensor, index: Tensor) -> Tensor:
    """`disentangled_attention_bias` from the relative embeddings [R, H] and positions: [B·A, S, S]."""
    table = narrow(t, rows, (1, d.relative, d.hidden))
    square, scores = (*q.shape[:2], q.shape[1]), (*q.shape[:2], d.relative)
    bias: Tensor | None = None
    pairs = (("c2p", q, "pos_key_proj", "key_proj"), ("p2c", k, "pos_query_proj", "query_proj"))
    if d.share_keys:
        # both are projected, whether used or not; queries first
        projected = {name: project_positions(t, table, name, d, q) for name in ("query_proj", "key_proj")}
    else:
        projected = {own: project_positions(t, table, own, d, q) for kind, _, own, _ in pairs if kind in d.biases}
    held: list[Tensor] = []  # each kind has variables of its own
    for kind, content, own, shared in pairs:
        if kind not in d.biases:
            continue
        keys = projected[shared if d.share_keys else own]
        if kind == "c2p":
            attended = autocast_matmul(t, content, keys, scores)
            places = clamped_positions(t, index)
        else:
            places = clamped_positions(t, index, negated=True)
            attended = autocast_matmul(t, content, keys, scores)
        attended = gather(t, attended, places, square)
        held += [attended, places]
        term = ops.scale(t, attended, "div")
        bias = ops.add_scalar(t, term) if bias is None else ops.add_in_place(t, bias, term)
        del term
    assert bias is not None, "relative_attention without pos_att_type"
    del held
    return bias


def project_positions(t: Builder, table: Tensor, name: str, d: Dims, q: Tensor) -> Tensor:
    """The relative embeddings as keys or queries, repeated over the batch: [B·A, R, D]."""
    rows = t.linear(name, table, d.heads * d.head_size, bias=True)
    heads = copy(t, rows, (d.heads, d.relative, d.head_size))
    return repeat(t, heads, (q.shape[0], d.relative, d.head_size))


def masked_softmax(t: Builder, scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of [B, A, S, S] with what the mask forbids filled in; the mask is made boolean in every layer."""
    boolean = t.new(mask.shape, DType.BOOL, "_to_copy")
    scores = masked_fill(t, scores, boolean)
    return softmax(t, scores, DType.FLOAT32 if t.settings.autocast else scores.dtype)


# -- version 1 --------------------------------------------------------------------------------------------


def attention_v1(t: Builder, x: Tensor, d: Dims, mask: Tensor, positions: Positions | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    batch, length, _ = x.shape
    fused = t.linear("in_proj", x, 3 * d.hidden)
    q, k, v = split(t, t.split_heads(fused, d.heads, 3 * d.head_size), [d.head_size] * 3)
    q = q + t.view(t.bare("q_bias", (d.hidden,), owner_class="DisentangledSelfAttention"), (1, d.heads, 1, d.head_size))
    v = v + t.view(t.bare("v_bias", (d.hidden,), owner_class="DisentangledSelfAttention"), (1, d.heads, 1, d.head_size))
    q = ops.scale(t, q, "div")
    square = (batch, d.heads, length, length)
    scores = autocast_matmul(t, q, k, square)
    if positions is not None:
        bias = position_bias_v1(t, q, k, d, positions)
        scores = scores + bias if bias is not None else ops.add_scalar(t, scores)
    else:
        scores = ops.add_scalar(t, scores)  # `attention_scores + 0`
    if d.talking_head:
        scores = mix_heads(t, "head_logits_proj", scores, d)
    probabilities = t.dropout(masked_softmax(t, scores, mask), d.attention_dropout)
    if d.talking_head:
        probabilities = mix_heads(t, "head_weights_proj", probabilities, d)
    out = autocast_matmul(t, probabilities, v, (batch, d.heads, length, d.head_size))
    return t.view(merge_heads(t, require_contiguous_gradient(t, out)), x.shape)


def position_bias_v1(t: Builder, q: Tensor, k: Tensor, d: Dims, positions: Positions) -> Tensor | None:
    """`disentangled_att_bias`: [B, A, S, S], over the positions that S tokens can have."""
    batch, _, length, _ = q.shape
    span = min(2 * length, d.relative)
    table = narrow(t, t.dropout(positions.embeddings, d.dropout), (1, span, d.hidden))
    bias: Tensor | None = None
    for kind, content, name in (("c2p", q, "pos_proj"), ("p2c", k, "pos_q_proj")):
        if kind not in d.biases:
            continue
        rows = t.linear(name, table, d.hidden, bias=kind == "p2c")
        heads = t.split_heads(rows, d.heads, d.head_size)
        scores = autocast_matmul(t, content, heads, (batch, d.heads, length, span))
        scores = gather(t, scores, clamped_positions(t, positions.index), (batch, d.heads, length, length))
        bias = ops.add_scalar(t, scores) if bias is None else bias + scores
    return bias


def mix_heads(t: Builder, name: str, x: Tensor, d: Dims) -> Tensor:
    """A linear over the heads of [B, A, S, S]."""
    batch, heads, length, _ = x.shape
    mixed = t.linear(name, t.view(x, (batch, length, length, heads)), d.heads)
    return t.view(mixed, x.shape)


def norm(t: Builder, name: str, x: Tensor, version: int) -> Tensor:
    """`nn.LayerNorm` in the second version; in the first `DebertaLayerNorm`, op by op in float32."""
    if version == 2:
        return t.layer_norm(name, x)
    path, size = t.join(name), x.shape[-1]
    if t.declaring:
        parameters = tuple(Parameter(entry, (size,)) for entry in ("weight", "bias"))
        t.declare(Module(path, ModuleKind.NORM, parameters, class_name="DebertaLayerNorm"))
    outer, t.module = t.module, path
    weight, bias = t.parameter(path, "weight", (size,)), t.parameter(path, "bias", (size,))
    hidden = ops.to(t, x, DType.FLOAT32)
    mean = ops.mean_last(t, hidden)
    variance = ops.mean_last(t, ops.pow2(t, hidden + mean))
    hidden = (hidden + mean) * ops.unary(t, "sqrt", ops.add_scalar(t, variance), save="output")
    out = weight * ops.to(t, hidden, x.dtype) + bias
    t.module = outer
    return out
