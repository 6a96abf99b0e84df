"""BART, and mBART, which norms before each block instead of after it.

Symbols: B micro batch, S source length (target length inside the decoder), H hidden size, A attention heads, D head size,
I intermediate size, P positions, V vocabulary, C labels.

Source: transformers 5.23 models/bart/modeling_bart.py, models/mbart/modeling_mbart.py.

Known limits:
    Every layer runs (`encoder_layerdrop` and `decoder_layerdrop` drop some at random).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Family, Head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.attention import detached
from memplan.step.builder import Builder, ByPosition
from memplan.step.clamping import clamp, look_for_infinities
from memplan.step.encoder import attend, bidirectional_mask, masked_lm_loss
from memplan.step.encoder_decoder import end_of_sentence, shifted_labels, target_side
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
    """The sizes of the whole, with their symbols; `prefix` is that of the class names."""

    prefix: str
    norm_before: bool
    hidden: Dim
    positions: Dim
    vocabulary: Dim
    encoder: Side
    decoder: Side
    activation: str
    scale_embedding: bool
    dropout: float
    attention_dropout: float
    activation_dropout: float
    classifier_dropout: float
    tied: bool


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden = config["d_model"]

    def side(name: str) -> Side:
        heads = config[f"{name}_attention_heads"]
        width = Dim(config[f"{name}_ffn_dim"], "I")
        return Side(Dim(heads, "A"), Dim(hidden // heads, "D"), width, config[f"{name}_layers"])

    return Dims(
        prefix="MBart" if config["model_type"] == "mbart" else "Bart",
        norm_before=config["model_type"] == "mbart",
        hidden=Dim(hidden, "H"),
        positions=Dim(config["max_position_embeddings"] + 2, "P"),  # BartLearnedPositionalEmbedding.offset
        vocabulary=Dim(config["vocab_size"], "V"),
        encoder=side("encoder"),
        decoder=side("decoder"),
        activation=config["activation_function"],
        scale_embedding=config["scale_embedding"],
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        activation_dropout=config["activation_dropout"],
        classifier_dropout=config["classifier_dropout"],
        tied=config["tie_word_embeddings"],
    )


# -- one stack --------------------------------------------------------------------------------------------


def attention(
    t: Builder,
    x: Tensor,
    keys: Tensor,
    d: Dims,
    side: Side,
    mask: Tensor | None,
    *,
    causal: bool = False,
    cached: bool = False,
) -> Tensor:
    """X [B, S, H] on keys [B, T, H]: [B, S, H]."""
    q = t.split_heads(t.linear("q_proj", x, d.hidden, bias=True), side.heads, side.head_size)
    k = t.linear("k_proj", keys, d.hidden, bias=True)
    v = t.linear("v_proj", keys, d.hidden, bias=True)
    k, v = t.split_heads(k, side.heads, side.head_size), t.split_heads(v, side.heads, side.head_size)
    if cached:
        k, v = t.cache_key_values(k, v)
    out = attend(t, q, k, v, mask, d.attention_dropout, causal=causal)
    return t.linear("out_proj", t.view(out, x.shape), d.hidden, bias=True)


def self_attention(
    t: Builder, x: Tensor, d: Dims, side: Side, mask: Tensor | None, *, causal: bool = False, cached: bool = False
) -> Tensor:
    """The self-attention block with its norm and residual: [B, S, H]."""
    residual = x
    if d.norm_before:
        x = t.layer_norm("self_attn_layer_norm", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, h, d, side, mask, causal=causal, cached=cached), x)
    x = t.dropout(x, d.dropout)
    x = residual + x
    return x if d.norm_before else t.layer_norm("self_attn_layer_norm", x)


def cross_attention(t: Builder, x: Tensor, d: Dims, side: Side, source: Tensor, mask: Tensor | None) -> Tensor:
    """The cross-attention block with its norm and residual: [B, S, H]."""
    residual = x
    if d.norm_before:
        x = t.layer_norm("encoder_attn_layer_norm", x)
    x = t.call("encoder_attn", lambda t, h: attention(t, h, source, d, side, mask), x)
    del t.layer_locals[:-1]  # one variable takes the weights of either attention
    x = t.dropout(x, d.dropout)
    x = residual + x
    return x if d.norm_before else t.layer_norm("encoder_attn_layer_norm", x)


def feed_forward(t: Builder, x: Tensor, d: Dims, side: Side) -> Tensor:
    """The MLP with its norm and residual: [B, S, H]."""
    residual = x
    if d.norm_before:
        x = t.layer_norm("final_layer_norm", x)
    x = t.activation(d.activation, t.linear("fc1", x, side.intermediate, bias=True))
    x = t.dropout(x, d.activation_dropout)
    x = t.linear("fc2", x, d.hidden, bias=True)
    x = t.dropout(x, d.dropout)
    x = residual + x
    return x if d.norm_before else t.layer_norm("final_layer_norm", x)


def embeddings(t: Builder, d: Dims, rows: int, input_ids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Words (scaled) and positions alone, which variables hold, and both together, normed: [B, S, H] each.

    The encoder looks positions up for every row, the decoder once.
    """
    words = t.embedding(
        "embed_tokens",
        (t.batch, t.sequence),
        d.vocabulary,
        d.hidden,
        class_name=f"{d.prefix}ScaledWordEmbedding",
        indices=input_ids,
    )
    words = t.require_input_gradient(ops.scale(t, words))
    position_ids = t.new((rows, t.sequence), DType.INT64, "add")
    positions = t.embedding(
        "embed_positions",
        (rows, t.sequence),
        d.positions,
        d.hidden,
        class_name=f"{d.prefix}LearnedPositionalEmbedding",
        indices=position_ids,
    )
    x = t.layer_norm("layernorm_embedding", words + positions)
    x = t.dropout(x, d.dropout)
    del position_ids
    return words, positions, x


def encoder(t: Builder, d: Dims) -> Tensor:
    """`BartEncoder`: [B, S, H]."""
    words, positions, *start = embeddings(t, d, t.batch)  # the last variable goes on to the first layer's result
    mask = bidirectional_mask(t, words.dtype)

    def layer(t: Builder, x: Tensor, index: int) -> Tensor:
        x = self_attention(t, x, d, d.encoder, mask)
        x = feed_forward(t, x, d, d.encoder)
        if x.dtype is not DType.FLOAT16:
            return x
        if d.norm_before:
            return clamp(t, x)
        look_for_infinities(t, x)
        return x

    x = t.layers("layers", d.encoder.layers, ByPosition(layer), start.pop())
    del words, positions
    return t.layer_norm("layer_norm", x) if d.norm_before else x


def decoder(
    t: Builder, d: Dims, source: Tensor | None, source_mask: Tensor | None, input_ids: Tensor | None = None
) -> Tensor:
    """`BartDecoder`: [B, T, H]; without a source it has its cross-attention but does not run it.

    A cache is kept without a source only: the heads over both stacks set `use_cache` to False where labels are given.
    """
    # mBART keeps the mask of ones that it makes where it is given none, BART the positions before their offset.
    ones = t.new((t.batch, t.sequence), DType.FLOAT32, "ones") if d.norm_before else t.position_ids(t.sequence)
    words, positions, *start = embeddings(t, d, 1, input_ids)
    mask = t.causal_mask(words.dtype, padding=source is None)

    def layer(t: Builder, x: Tensor, index: int, source: Tensor | None) -> Tensor:
        x = self_attention(t, x, d, d.decoder, mask, causal=True, cached=source is None)
        if source is not None:
            x = cross_attention(t, x, d, d.decoder, source, source_mask)
        elif t.declaring:
            cross_attention(t, x, d, d.decoder, x, None)
        return feed_forward(t, x, d, d.decoder)

    x = t.layers("layers", d.decoder.layers, ByPosition(layer, (source_mask,), (source,)), start.pop())
    del words, positions, ones
    return t.layer_norm("layer_norm", x) if d.norm_before else x


# -- models -----------------------------------------------------------------------------------------------


def model(t: Builder, d: Dims, held: list[Tensor]) -> Tensor:
    """`BartModel`: [B, T, H]; `held` takes what the caller's variables hold until it returns."""
    t.input_path = t.join("shared")
    table(t, "shared", d.vocabulary, d.hidden, class_name=f"{d.prefix}ScaledWordEmbedding")
    if d.tied:
        for side in ("encoder", "decoder"):
            t.tie(t.join(f"{side}.embed_tokens.weight"), t.join("shared.weight"))
    with target_side(t):
        input_ids = shifted_labels(t)
    source = t.call("encoder", lambda t: encoder(t, d))
    t.outputs.append(detached(source))
    mask = bidirectional_mask(t, source.dtype, t.target_sequence, t.sequence)
    with target_side(t):
        hidden = t.call("decoder", lambda t, h: decoder(t, d, h, mask, input_ids), source)
    held.append(input_ids)
    return hidden


def classification_head(t: Builder, x: Tensor, d: Dims, head: Head) -> Tensor:
    """`BartClassificationHead`: [B, H] to [B, C]."""
    t.class_name(f"{d.prefix}ClassificationHead")
    x = t.dropout(x, d.classifier_dropout)
    x = t.activation("tanh", t.linear("dense", x, d.hidden, bias=True))
    x = t.dropout(x, d.classifier_dropout)
    return t.linear("out_proj", x, Dim(head.num_labels, "C"), bias=True)


def decoder_only(t: Builder, d: Dims) -> Tensor:
    """`BartDecoderWrapper`: the decoder without an encoder, [B, S, H]."""
    t.input_path = t.join("decoder.embed_tokens")
    return t.call("decoder", lambda t: decoder(t, d, None, None))


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    d = dims(config)
    held: list[Tensor] = []
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d, held)
    if head.task is Task.CAUSAL_LM:
        hidden = t.call("model", lambda t: decoder_only(t, d))
        tied_to = "model.decoder.embed_tokens" if d.tied else None
        return masked_lm_loss(t, t.output_embedding("lm_head", hidden, d.vocabulary, tied_to=tied_to))
    hidden = t.call("model", lambda t: model(t, d, held))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        t.head_modules.append("classification_head")
        hidden = end_of_sentence(t, hidden)
        logits = t.call("classification_head", lambda t, x: classification_head(t, x, d, head), hidden)
        return t.classification_loss(logits)
    t.buffer("final_logits_bias", (1, d.vocabulary), persistent=True, as_loaded=True)
    # As buffers are: in the type that the model was loaded in, which quantized layers know where other weights are cast.
    loaded = t.parameter("model.encoder.layers.0.fc1", "weight", (d.encoder.intermediate, d.hidden)).dtype
    logits = t.output_embedding("lm_head", hidden, d.vocabulary, tied_to="model.shared" if d.tied else None)
    with t.component(Component.LOGITS_AND_LOSS):
        logits = logits + Tensor(t, (1, d.vocabulary), loaded, None)
    return masked_lm_loss(t, logits)


FAMILY = Family(
    forward,
    "model",
    (
        Task.SEQ2SEQ_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.MASKED_LM,
        Task.PRE_TRAINING,
        Task.CAUSAL_LM,
        Task.FEATURE_EXTRACTION,
    ),
    missing={"mbart": frozenset({Task.PRE_TRAINING})},
    walked=frozenset({"bart", "mbart"}),
    walked_tasks=frozenset({Task.SEQ2SEQ_LM}),
    walked_int8=False,
    folds=False,
)
