"""GPT-2, and GPT-BigCode (SantaCoder, StarCoder), which has plain linears and one key/value head.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size, I intermediate
size, P positions, V vocabulary.

Source: transformers 5.23 models/gpt2/modeling_gpt2.py, models/gpt_bigcode/modeling_gpt_bigcode.py.

Known limits:
    No cross-attention (`add_cross_attention`) and no `reorder_and_upcast_attn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.classic_heads import DECODER_TASKS, decoder_head, token_classifier_dropout
from memplan.recipe import Task
from memplan.step.builder import Builder, ByPosition, given
from memplan.step.encoder import attend
from memplan.step.split import split
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols."""

    hidden: Dim
    heads: Dim
    kv_heads: Dim
    head_size: Dim
    intermediate: Dim
    positions: Dim
    vocabulary: Dim
    layers: int
    activation: str
    big_code: bool
    residual_dropout: float
    embedding_dropout: float
    attention_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["n_embd"], config["n_head"]
    big_code = config["model_type"] == "gpt_bigcode"
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        kv_heads=Dim(1 if big_code and config["multi_query"] else heads, "K"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["n_inner"] or 4 * hidden, "I"),
        positions=Dim(config["n_positions"], "P"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["n_layer"],
        activation=config["activation_function"],
        big_code=big_code,
        residual_dropout=config["resid_pdrop"],
        embedding_dropout=config["embd_pdrop"],
        attention_dropout=config["attn_pdrop"],
    )


def projection(t: Builder, name: str, x: Tensor, out_features: int, d: Dims) -> Tensor:
    """`Conv1D` in GPT-2, `nn.Linear` in GPT-BigCode; both with a bias."""
    return t.linear(name, x, out_features, bias=True) if d.big_code else t.conv1d(name, x, out_features)


def split_fused(t: Builder, fused: Tensor, d: Dims) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, A, S, D], keys and values [B, K, S, D] out of `c_attn`."""
    if d.big_code and d.kv_heads == d.heads:
        q, k, v = split(t, t.split_heads(fused, d.heads, 3 * d.head_size), [d.head_size] * 3)
        return q, k, v
    kv_size = d.kv_heads * d.head_size
    q, k, v = split(t, fused, [d.hidden, kv_size, kv_size])
    return (
        t.split_heads(q, d.heads, d.head_size),
        t.split_heads(k, d.kv_heads, d.head_size),
        t.split_heads(v, d.kv_heads, d.head_size),
    )


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    fused = projection(t, "c_attn", x, d.hidden + d.kv_heads * d.head_size * 2, d)
    q, k, v = split_fused(t, fused, d)
    del fused
    k, v = t.cache_key_values(k, v)
    if d.big_code:
        out = t.attention(q, k, v, mask=mask, dropout=d.attention_dropout)
    else:
        out = attend(t, q, k, v, mask, d.attention_dropout, causal=True, casts_back=True)
    out = t.view(out, (*x.shape[:-1], d.hidden))
    return t.dropout(projection(t, "c_proj", out, d.hidden, d), d.residual_dropout)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = projection(t, "c_fc", x, d.intermediate, d)
    x = t.activation(d.activation, x)
    x = projection(t, "c_proj", x, d.hidden, d)
    return t.dropout(x, d.residual_dropout)


def block(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.layer_norm("ln_1", x)
    attended = t.call("attn", lambda t, h: attention(t, h, d, mask), x)
    x = attended + residual
    residual = x
    x = t.layer_norm("ln_2", x)
    forwarded = t.call("mlp", lambda t, h: mlp(t, h, d), x)
    return residual + forwarded


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    if d.big_code:
        t.buffer("bias", (d.positions, d.positions), DType.BOOL)
    embedded = t.input_embedding("wte", (t.batch, t.sequence), d.vocabulary, d.hidden)
    position_ids = t.position_ids(t.sequence)
    rows = 1 if t.cache is None else t.batch  # `generate` gives every row its positions
    positions = t.embedding("wpe", (rows, t.sequence), d.positions, d.hidden, indices=position_ids)
    # Forward's variable goes on to the first block's result.
    start = [t.dropout(embedded + positions, d.embedding_dropout)]
    mask = t.causal_mask(start[0].dtype)

    def layer(t: Builder, h: Tensor, index: int) -> Tensor:
        return block(t, h, d, mask)

    blocks = layer if d.big_code else ByPosition(given(layer, position_ids), (position_ids,))
    x = t.layers("h", d.layers, blocks, start.pop())
    x = t.layer_norm("ln_f", x)
    del embedded, positions, position_ids
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return decoder_head(
        t,
        lambda t: model(t, config),
        config,
        head,
        base="transformer",
        embedding="wte",
        classifier_dropout=token_classifier_dropout(config),
    )


FAMILY = Family(
    forward,
    "transformer",
    DECODER_TASKS,
    walked=frozenset({"gpt2", "gpt_bigcode"}),
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    walked_int8=False,
)
