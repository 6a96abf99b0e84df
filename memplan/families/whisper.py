"""Whisper: two convolutions over a spectrogram, a pre-norm encoder, a decoder of text.

Symbols: B micro batch, M mel bins, P source positions (after the convolutions), S target length, H hidden size, A attention
heads, D head size, I intermediate size, V vocabulary.

Source: transformers 5.23 models/whisper/modeling_whisper.py.

Known limits:
    Every layer runs (`encoder_layerdrop` and `decoder_layerdrop` drop some at random). transformers freezes the encoder's
    sinusoidal positions when it builds the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.convolution import conv, weight_dtype
from memplan.step.encoder import masked_lm_loss
from memplan.step.encoder_decoder import shifted_labels, target_side
from memplan.step.matmul import contiguous
from memplan.step.split import take
from memplan.step.tables import table
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """The sizes of one stack, with their symbols."""

    heads: Dim
    head_size: Dim
    intermediate: Dim
    layers: int


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of the whole, with their symbols."""

    hidden: Dim
    mel_bins: Dim
    source_positions: Dim
    target_positions: Dim
    vocabulary: Dim
    encoder: Side
    decoder: Side
    activation: str
    dropout: float
    attention_dropout: float
    activation_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden = config["d_model"]

    def side(name: str) -> Side:
        heads = config[f"{name}_attention_heads"]
        width = Dim(config[f"{name}_ffn_dim"], "I")
        return Side(Dim(heads, "A"), Dim(hidden // heads, "D"), width, config[f"{name}_layers"])

    return Dims(
        hidden=Dim(hidden, "H"),
        mel_bins=Dim(config["num_mel_bins"], "M"),
        source_positions=Dim(config["max_source_positions"], "P"),
        target_positions=Dim(config["max_target_positions"], "P"),
        vocabulary=Dim(config["vocab_size"], "V"),
        encoder=side("encoder"),
        decoder=side("decoder"),
        activation=config["activation_function"],
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        activation_dropout=config["activation_dropout"],
    )


# -- layers -----------------------------------------------------------------------------------------------


def attention(t: Builder, x: Tensor, keys: Tensor, d: Dims, side: Side, mask: Tensor | None, *, cached: bool) -> Tensor:
    """X [B, S, H] on keys [B, T, H]: [B, S, H]; heads are made contiguous before attention, `k_proj` has no bias."""
    q = ops.scale(t, t.linear("q_proj", x, d.hidden, bias=True))
    q = contiguous(t, t.split_heads(q, side.heads, side.head_size))
    k = contiguous(t, t.split_heads(t.linear("k_proj", keys, d.hidden), side.heads, side.head_size))
    v = contiguous(t, t.split_heads(t.linear("v_proj", keys, d.hidden, bias=True), side.heads, side.head_size))
    if cached:
        k, v = t.cache_key_values(k, v)
    out = t.attention(q, k, v, mask=mask, dropout=d.attention_dropout, causal=cached and keys is x)
    return t.linear("out_proj", t.view(out, x.shape), d.hidden, bias=True)


def self_attention(t: Builder, x: Tensor, d: Dims, side: Side, mask: Tensor | None, *, cached: bool) -> Tensor:
    """Norm, self-attention, residual: [B, S, H]."""
    residual = x
    x = t.layer_norm("self_attn_layer_norm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, h, d, side, mask, cached=cached), x)
    return residual + t.dropout(x, d.dropout)


def cross_attention(t: Builder, x: Tensor, d: Dims, side: Side, source: Tensor) -> Tensor:
    """Norm, cross-attention (never masked), residual: [B, S, H]."""
    residual = x
    x = t.layer_norm("encoder_attn_layer_norm", x)
    x = t.call("encoder_attn", lambda t, h: attention(t, h, source, d, side, None, cached=True), x)
    return residual + t.dropout(x, d.dropout)


def feed_forward(t: Builder, x: Tensor, d: Dims, side: Side) -> Tensor:
    """Norm, MLP, residual: [B, S, H]."""
    residual = x
    x = t.layer_norm("final_layer_norm", x)
    x = t.activation(d.activation, t.linear("fc1", x, side.intermediate, bias=True))
    x = t.dropout(x, d.activation_dropout)
    x = t.linear("fc2", x, d.hidden, bias=True)
    return residual + t.dropout(x, d.dropout)


# -- stacks -----------------------------------------------------------------------------------------------


def encoder(t: Builder, d: Dims) -> Tensor:
    """`WhisperEncoder`: a spectrogram [B, M, 2·P] to [B, P, H]."""
    frames = 2 * d.source_positions
    features = t.new((t.batch, d.mel_bins, frames), weight_dtype(t, "conv1"), "input_features")
    x = conv(t, "conv1", features, d.hidden, (3,), (t.batch, d.hidden, frames), in_channels=d.mel_bins)
    x = t.activation("gelu", x)
    x = conv(t, "conv2", x, d.hidden, (3,), (t.batch, d.hidden, d.source_positions), in_channels=d.hidden)
    x = t.activation("gelu", x)
    x = t.view(x, (t.batch, d.source_positions, d.hidden))
    positions = t.embedding("embed_positions", (d.source_positions,), d.source_positions, d.hidden)
    t.freeze("embed_positions.weight")
    x = t.dropout(x + positions, d.dropout)

    def layer(t: Builder, x: Tensor, index: int) -> Tensor:
        return feed_forward(t, self_attention(t, x, d, d.encoder, None, cached=False), d, d.encoder)

    x = t.layers("layers", d.encoder.layers, layer, x)
    del features, positions
    return t.layer_norm("layer_norm", x)


def decoder(t: Builder, d: Dims, source: Tensor) -> Tensor:
    """`WhisperDecoder`: [B, S, H]."""
    words = t.input_embedding("embed_tokens", (t.batch, t.sequence), d.vocabulary, d.hidden)
    position_ids = t.new((t.batch, t.sequence), DType.INT64, "repeat")
    weight = table(t, "embed_positions", d.target_positions, d.hidden, class_name="WhisperPositionalEmbedding")
    positions = take(t, weight, (t.batch, t.sequence, d.hidden))
    x = t.dropout(words + positions, d.dropout)
    mask = t.causal_mask(words.dtype)

    def layer(t: Builder, x: Tensor, index: int) -> Tensor:
        x = self_attention(t, x, d, d.decoder, mask, cached=True)
        x = cross_attention(t, x, d, d.decoder, source)
        return feed_forward(t, x, d, d.decoder)

    x = t.layers("layers", d.decoder.layers, layer, x)
    del words, position_ids, positions
    return t.layer_norm("layer_norm", x)


def model(t: Builder, d: Dims) -> Tensor:
    """`WhisperModel`: [B, S, H]."""
    source = t.call("encoder", lambda t: encoder(t, d))
    with target_side(t):
        input_ids = shifted_labels(t)
        hidden = t.call("decoder", lambda t, h: decoder(t, d, h), source)
    del input_ids, source
    return hidden


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d)
    hidden = t.call("model", lambda t: model(t, d))
    tied_to = "model.decoder.embed_tokens" if config["tie_word_embeddings"] else None
    return masked_lm_loss(t, t.output_embedding("proj_out", hidden, d.vocabulary, tied_to=tied_to))


FAMILY = Family(forward, "model", (Task.SPEECH_SEQ2SEQ, Task.FEATURE_EXTRACTION), folds=False)
