"""ModernBERT: pre-norm layers without biases, rotary embedding, gated MLP, local attention in most layers.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, D head size, I intermediate size, V vocabulary,
C labels.

Source: transformers 5.23 models/modernbert/modeling_modernbert.py.

Known limits:
    The head sees every position (`sparse_prediction` would let it see the masked ones only).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.bert import token_classifier
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.attention import rotate_half
from memplan.step.builder import Builder, Layer, PerLayer
from memplan.step.encoder import bidirectional_mask, first_token, masked_lm_loss, mean_over_tokens
from memplan.step.split import split
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one encoder, with their symbols."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    vocabulary: Dim
    layer_types: tuple[str, ...]
    window: int
    activation: str
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    attention_dropout: float
    embedding_dropout: float
    mlp_dropout: float


@dataclass(frozen=True, slots=True)
class Side:
    """What layers of one type share: the rotary table and the mask."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(hidden // heads, "D"),
        intermediate=Dim(config["intermediate_size"], "I"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layer_types=tuple(config["layer_types"]),
        window=config["sliding_window"],
        activation=config["hidden_activation"],
        attention_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
        norm_bias=config["norm_bias"],
        attention_dropout=config["attention_dropout"],
        embedding_dropout=config["embedding_dropout"],
        mlp_dropout=config["mlp_dropout"],
    )


# -- encoder ----------------------------------------------------------------------------------------------


def embeddings(t: Builder, d: Dims) -> Tensor:
    """Words, normed: [B, S, H]."""
    words = t.input_embedding("tok_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    return t.dropout(t.layer_norm("norm", words, bias=d.norm_bias), d.embedding_dropout)


def rotary_in_float(t: Builder, x: Tensor, side: Side) -> Tensor:
    """The rotary embedding computed in float32 and cast back: x [B, A, S, D]."""
    direct = ops.to(t, x, DType.FLOAT32) * side.cos
    return ops.to(t, direct + (rotate_half(t, ops.to(t, x, DType.FLOAT32)) * side.sin), x.dtype)


def attention(t: Builder, x: Tensor, d: Dims, side: Side) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    fused = t.linear("Wqkv", x, 3 * d.hidden, bias=d.attention_bias)
    q, k, v = (t.split_heads(part, d.heads, d.head_size) for part in split(t, fused, [d.hidden] * 3))
    q, k = rotary_in_float(t, q, side), rotary_in_float(t, k, side)
    out = t.attention(q, k, v, mask=side.mask, dropout=d.attention_dropout, causal=False)
    out = t.view(out, x.shape)
    return t.dropout(t.linear("Wo", out, d.hidden, bias=d.attention_bias), d.attention_dropout)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """The gated MLP: x [B, S, H] to [B, S, H]."""
    up, gate = split(t, t.linear("Wi", x, d.intermediate * 2, bias=d.mlp_bias), [d.intermediate] * 2)
    return t.linear("Wo", t.dropout(t.activation(d.activation, up) * gate, d.mlp_dropout), d.hidden, bias=d.mlp_bias)


def layer(t: Builder, x: Tensor, index: int, d: Dims, side: Side) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]; the first has no norm before its attention."""
    normed = t.layer_norm("attn_norm", x, bias=d.norm_bias) if index else x
    attended = t.call("attn", lambda t, h: attention(t, h, d, side), normed)  # lives until the layer returns
    del normed
    x = x + attended
    return x + t.call("mlp", lambda t, h: mlp(t, h, d), t.layer_norm("mlp_norm", x, bias=d.norm_bias))


def local_mask(t: Builder, dtype: DType, window: int) -> Tensor | None:
    """`create_bidirectional_sliding_window_mask`: needed as soon as the sequence is longer than the window."""
    settings = t.settings
    if settings.attn_implementation == "flash_attention_2" or t.sequence < window:
        return bidirectional_mask(t, dtype)
    batch = t.batch if settings.padding else 1
    allowed = t.new((batch, 1, t.sequence, t.sequence), DType.BOOL, "bitwise_and")
    if settings.attn_implementation == "sdpa":
        # Expanded over the batch; what sdpa makes of it is as large as its shape says.
        return Tensor(t, (t.batch, 1, t.sequence, t.sequence), DType.BOOL, allowed.storage, is_view=True)
    mask = t.new((t.batch, 1, t.sequence, t.sequence), dtype, "where")
    del allowed
    return mask


def model(t: Builder, d: Dims) -> Tensor:
    """The encoder without a head: [B, S, H]."""
    position_ids = t.new((1, t.sequence), DType.INT64, "arange")
    embedded = t.call("embeddings", lambda t: embeddings(t, d))  # `mask_kwargs` holds it
    masks = {
        "full_attention": bidirectional_mask(t, embedded.dtype),
        "sliding_attention": local_mask(t, embedded.dtype, d.window),
    }
    sides = {}
    for layer_type in sorted(set(d.layer_types)):
        for name in ("inv_freq", "original_inv_freq"):
            t.buffer(f"rotary_emb.{layer_type}_{name}", ((d.head_size + 1) // 2,))
        sides[layer_type] = Side(*t.rotary_table(embedded.dtype, d.head_size, t.sequence), masks[layer_type])

    def of(index: int) -> Layer:
        side = sides[d.layer_types[index]]
        return lambda t, h, index: layer(t, h, index, d, side)

    x = t.layers(
        "layers",
        len(d.layer_types),
        PerLayer(of),
        embedded,
        kind=lambda index: (d.layer_types[index], index == 0),
    )
    x = t.layer_norm("final_norm", x, bias=d.norm_bias)
    del position_ids
    return x


# -- heads ------------------------------------------------------------------------------------------------


def prediction_head(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any]) -> Tensor:
    """`ModernBertPredictionHead`: a linear, the activation, a norm."""
    x = t.activation(config["classifier_activation"], t.linear("dense", x, d.hidden, bias=config["classifier_bias"]))
    return t.layer_norm("norm", x, bias=d.norm_bias)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d)
    hidden = t.call("model", lambda t: model(t, d))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        hidden = first_token(t, hidden) if config["classifier_pooling"] == "cls" else mean_over_tokens(t, hidden)
    t.head_modules.append("head")

    def predicted() -> Tensor:
        return t.call("head", lambda t, x: prediction_head(t, x, d, config), hidden)

    if head.task is not Task.MASKED_LM:
        return token_classifier(t, predicted(), head, config["classifier_dropout"])
    tied_to = "model.embeddings.tok_embeddings" if config["tie_word_embeddings"] else None
    logits = t.output_embedding("decoder", predicted(), d.vocabulary, tied_to=tied_to, bias=config["decoder_bias"])
    return masked_lm_loss(t, logits, upcast=True)


FAMILY = Family(
    forward,
    "model",
    (Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.FEATURE_EXTRACTION),
    walked=frozenset({"modernbert"}),
    walked_tasks=frozenset({Task.MASKED_LM}),
)
