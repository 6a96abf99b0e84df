"""OPT: learned positions, norm before (or, in 350m, after) each block, word embeddings that may be narrower than H.

Symbols: B micro batch, S sequence length, H hidden size, E word embedding size, A attention heads, D head size,
I intermediate size, P positions, V vocabulary.

Source: transformers 5.23 models/opt/modeling_opt.py.

Known limits:
    Every layer runs (`layerdrop` drops some at random).
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
from memplan.step.affine_free_norm import affine_free_layer_norm
from memplan.step.builder import Builder, given
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols."""

    hidden: Dim
    word: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    positions: Dim
    vocabulary: Dim
    layers: int
    activation: str
    bias: bool
    affine: bool
    norm_before: bool
    final_norm: bool
    dropout: float
    attention_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Dims(
        hidden=Dim(hidden, "H"),
        word=Dim(config["word_embed_proj_dim"], "E"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["ffn_dim"], "I"),
        positions=Dim(config["max_position_embeddings"] + 2, "P"),  # OPTLearnedPositionalEmbedding.offset
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["num_hidden_layers"],
        activation=config["activation_function"],
        bias=config["enable_bias"],
        affine=config["layer_norm_elementwise_affine"],
        norm_before=config["do_layer_norm_before"],
        final_norm=config["do_layer_norm_before"] and not config["_remove_final_layer_norm"],
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
    )


def norm(t: Builder, name: str, x: Tensor, d: Dims) -> Tensor:
    """`nn.LayerNorm`, which may be without parameters."""
    return t.layer_norm(name, x) if d.affine else affine_free_layer_norm(t, x)


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    q = t.split_heads(ops.scale(t, t.linear("q_proj", x, d.hidden, bias=d.bias)), d.heads, d.head_size)
    k = t.linear("k_proj", x, d.hidden, bias=d.bias)
    v = t.linear("v_proj", x, d.hidden, bias=d.bias)
    k, v = t.split_heads(k, d.heads, d.head_size), t.split_heads(v, d.heads, d.head_size)
    k, v = t.cache_key_values(k, v)
    out = t.attention(q, k, v, mask=mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.hidden))
    return t.linear("out_proj", out, d.hidden, bias=d.bias)


def layer(t: Builder, x: Tensor, d: Dims, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    if d.norm_before:
        x = norm(t, "self_attn_layer_norm", x, d)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, mask), x)
    x = t.dropout(x, d.dropout)
    x = residual + x
    if not d.norm_before:
        x = norm(t, "self_attn_layer_norm", x, d)
    shape = x.shape
    x = t.view(x, (shape[0] * shape[1], shape[2]))
    residual = x
    if d.norm_before:
        x = norm(t, "final_layer_norm", x, d)
    x = t.linear("fc1", x, d.intermediate, bias=d.bias)
    x = t.activation(d.activation, x)
    x = t.linear("fc2", x, d.hidden, bias=d.bias)
    x = t.dropout(x, d.dropout)
    x = t.view(residual + x, shape)
    if not d.norm_before:
        x = norm(t, "final_layer_norm", x, d)
    return x


def decoder(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, E]."""
    d = dims(config)
    embedded = t.input_embedding("embed_tokens", (t.batch, t.sequence), d.vocabulary, d.word)
    if t.cache is None:
        ones = None if t.settings.padding else t.new((t.batch, t.sequence), DType.FLOAT32, "ones")
        position_ids = t.new((t.batch, t.sequence), DType.INT64, "_to_copy")
    else:  # `generate` gives both
        ones, position_ids = (Tensor(t, (t.batch, t.sequence), DType.INT64, None) for _ in range(2))
    mask = t.causal_mask(embedded.dtype)
    indices = t.new((t.batch, t.sequence), DType.INT64, "add")  # OPTLearnedPositionalEmbedding.offset
    positions = t.embedding(
        "embed_positions",
        (t.batch, t.sequence),
        d.positions,
        d.hidden,
        class_name="OPTLearnedPositionalEmbedding",
        indices=indices,
    )
    del indices
    if d.word != d.hidden:
        embedded = t.linear("project_in", embedded, d.hidden)
    start = [embedded + positions]  # forward's variable goes on to the first layer's result
    x = t.layers("layers", d.layers, given(lambda t, h, _: layer(t, h, d, mask), position_ids), start.pop())
    if d.final_norm:
        x = norm(t, "final_layer_norm", x, d)
    if d.word != d.hidden:
        x = t.linear("project_out", x, d.word)
    del embedded, ones, position_ids, positions
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""

    def body(t: Builder) -> Tensor:
        return t.call("decoder", lambda t: decoder(t, config))

    return decoder_head(t, body, config, head, base="model", embedding="decoder.embed_tokens")


FAMILY = Family(
    forward,
    "model",
    (Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.FEATURE_EXTRACTION),
    walked=frozenset({"opt"}),
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    walked_int8=False,
)
