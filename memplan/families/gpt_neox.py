"""GPT-NeoX, Pythia and the StableLM alpha models: fused heads, partial rotary embedding, parallel residual.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, I intermediate size, V vocabulary.

Source: transformers 5.23 models/gpt_neox/modeling_gpt_neox.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.families import Family, Head
from memplan.families.classic_heads import DECODER_TASKS, decoder_head
from memplan.recipe import Task
from memplan.step.builder import Builder, given
from memplan.step.split import rotate_parts, split
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols; `rotary_size` is the rotated part of D."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    rotary_size: int
    intermediate: Dim
    vocabulary: Dim
    layers: int
    activation: str
    attention_bias: bool
    parallel_residual: bool
    attention_dropout: float
    hidden_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        rotary_size=int(hidden // heads * config["rope_parameters"].get("partial_rotary_factor", 1.0)),
        intermediate=Dim(config["intermediate_size"], "I"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["num_hidden_layers"],
        activation=config["hidden_act"],
        attention_bias=config["attention_bias"],
        parallel_residual=config["use_parallel_residual"],
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
    )


def attention(t: Builder, x: Tensor, d: Dims, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    fused = t.linear("query_key_value", x, 3 * d.hidden, bias=d.attention_bias)
    fused = t.split_heads(fused, d.heads, 3 * d.head_size)
    q, k, v = split(t, fused, [d.head_size] * 3)
    q, k = rotate_parts(t, q, k, cos, sin, d.rotary_size)
    k, v = t.cache_key_values(k, v)
    out = t.attention(q, k, v, mask=mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.hidden))
    return t.linear("dense", out, d.hidden, bias=d.attention_bias)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    x = t.linear("dense_h_to_4h", x, d.intermediate, bias=True)
    x = t.activation(d.activation, x)
    return t.linear("dense_4h_to_h", x, d.hidden, bias=True)


def layer(t: Builder, x: Tensor, d: Dims, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    attended = t.call("attention", lambda t, h: attention(t, h, d, cos, sin, mask), t.layer_norm("input_layernorm", x))
    attended = t.dropout(attended, d.hidden_dropout)
    if d.parallel_residual:
        forwarded = t.call("mlp", lambda t, h: mlp(t, h, d), t.layer_norm("post_attention_layernorm", x))
        forwarded = t.dropout(forwarded, d.hidden_dropout)
        return forwarded + attended + x
    attended = attended + x
    forwarded = t.call("mlp", lambda t, h: mlp(t, h, d), t.layer_norm("post_attention_layernorm", attended))
    forwarded = t.dropout(forwarded, d.hidden_dropout)
    return forwarded + attended


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    embedded = t.input_embedding("embed_in", (t.batch, t.sequence), d.vocabulary, d.hidden)
    position_ids = t.position_ids(t.sequence)
    mask = t.causal_mask(embedded.dtype)
    x = t.dropout(embedded, d.hidden_dropout)
    for name in ("inv_freq", "original_inv_freq"):
        t.buffer(f"rotary_emb.{name}", ((d.rotary_size + 1) // 2,))
    cos, sin = t.rotary_table(x.dtype, d.rotary_size, t.sequence)
    x = t.layers("layers", d.layers, given(lambda t, h, _: layer(t, h, d, cos, sin, mask), position_ids), x)
    x = t.layer_norm("final_layer_norm", x)
    del embedded, position_ids
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return decoder_head(
        t,
        lambda t: model(t, config),
        config,
        head,
        base="gpt_neox",
        embedding="embed_in",
        classifier_dropout=config["classifier_dropout"],
    )


FAMILY = Family(
    forward,
    "gpt_neox",
    DECODER_TASKS,
    walked=frozenset({"gpt_neox"}),
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    walked_int8=False,
)
