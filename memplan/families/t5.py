"""T5 and mT5: encoder-decoders with a relative position bias in the first layer of each stack, shared by the others.

Symbols: B micro batch, S source length (target length inside the decoder), H hidden size, A attention heads, D head size,
I intermediate size, N buckets, V vocabulary, C labels.

Source: transformers 5.23 models/t5/modeling_t5.py, models/mt5/modeling_mt5.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Family, Head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.attention import detached
from memplan.step.autograd import Results
from memplan.step.builder import Builder, ByPosition
from memplan.step.clamping import clamp_where_infinite
from memplan.step.encoder import bidirectional_mask, masked_lm_loss
from memplan.step.encoder_decoder import end_of_sentence, shifted_labels, target_side
from memplan.step.relative_bias import biased_attention, relative_bias
from memplan.step.tables import table
from memplan.step.tensor import Dim, Leaf, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of both stacks, with their symbols; `prefix` is that of the class names."""

    prefix: str
    hidden: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    buckets: Dim
    vocabulary: Dim
    encoder_layers: int
    decoder_layers: int
    activation: str
    gated: bool
    dropout: float
    classifier_dropout: float
    scale_outputs: bool
    tied: bool


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    return Dims(
        prefix="MT5" if config["model_type"] == "mt5" else "T5",
        hidden=Dim(config["d_model"], "H"),
        heads=Dim(config["num_heads"], "A"),
        head_size=Dim(config["d_kv"], "D"),
        intermediate=Dim(config["d_ff"], "I"),
        buckets=Dim(config["relative_attention_num_buckets"], "N"),
        vocabulary=Dim(config["vocab_size"], "V"),
        encoder_layers=config["num_layers"],
        decoder_layers=config["num_decoder_layers"],
        activation=config["dense_act_fn"],
        gated=config["is_gated_act"],
        dropout=config["dropout_rate"],
        classifier_dropout=config["classifier_dropout"],
        scale_outputs=config.get("scale_decoder_outputs", False),
        tied=config["tie_word_embeddings"],
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What the decoder's cross-attention gets: the encoder's output and its mask."""

    hidden: Tensor
    mask: Tensor | None


# -- one stack --------------------------------------------------------------------------------------------


def norm(t: Builder, name: str, x: Tensor, d: Dims) -> Tensor:
    """`T5LayerNorm`: no mean, no bias; the variance in float32."""
    path, size = t.join(name), x.shape[-1]
    if t.declaring:
        t.declare(Module(path, ModuleKind.NORM, (Parameter("weight", (size,)),), class_name=f"{d.prefix}LayerNorm"))
    outer, t.module = t.module, path
    weight = t.parameter(path, "weight", (size,))
    variance = ops.mean_last(t, ops.pow2(t, ops.to(t, x, DType.FLOAT32)))
    x = x * ops.rsqrt(t, ops.add_scalar(t, variance))
    if weight.dtype.is_half:
        x = ops.to(t, x, weight.dtype)
    out = weight * x
    t.module = outer
    return out


def project(t: Builder, name: str, x: Tensor, d: Dims) -> Tensor:
    """A projection without bias, split into heads: [B, A, S, D]."""
    return t.split_heads(t.linear(name, x, d.heads * d.head_size), d.heads, d.head_size)


def attention(
    t: Builder,
    x: Tensor,
    keys: Tensor,
    d: Dims,
    make_bias: Callable[[Tensor], Tensor],
    mask: Tensor | None,
    *,
    causal: bool,
    cached: bool,
) -> tuple[Tensor, Tensor]:
    """X [B, S, H] on keys [B, T, H]: [B, S, H], and the bias, which `make_bias` makes given the query."""
    q, k, v = project(t, "q", x, d), project(t, "k", keys, d), project(t, "v", keys, d)
    if cached:
        k, v = t.cache_key_values(k, v)
    bias = make_bias(q)
    out = biased_attention(t, q, k, v, bias, mask, d.dropout, causal=causal)
    return t.linear("o", t.view(out, (*x.shape[:-1], d.heads * d.head_size)), d.hidden), bias


def self_attention(
    t: Builder, x: Tensor, d: Dims, given: Tensor | None, mask: Tensor | None, *, decoder: bool
) -> tuple[Tensor, Tensor]:
    """`T5LayerSelfAttention`: [B, S, H], and the bias, which the first layer makes."""
    normed = norm(t, "layer_norm", x, d)

    def make_bias(_: Tensor) -> Tensor:
        return given or relative_bias(t, "relative_attention_bias", d.buckets, d.heads, t.sequence, t.sequence)

    def attend(t: Builder, h: Tensor) -> tuple[Tensor, Tensor]:
        return attention(t, h, h, d, make_bias, mask, causal=decoder, cached=decoder)

    attended, bias = t.call("SelfAttention", attend, normed)
    return x + t.dropout(attended, d.dropout), bias


def cross_attention(t: Builder, x: Tensor, d: Dims, given: Tensor | None, source: Source) -> tuple[Tensor, Tensor]:
    """`T5LayerCrossAttention`: [B, T, H], and the bias, which the first layer makes: zeros."""
    normed = norm(t, "layer_norm", x, d)

    def make_bias(query: Tensor) -> Tensor:
        if given is not None:
            return given
        shape = (1, d.heads, x.shape[1], source.hidden.shape[1])
        made = t.new(shape, query.dtype, "zeros")
        if t.settings.checkpointing:  # `position_bias.requires_grad = True`
            made.node = Leaf(t.module, shape, query.dtype, Component.TEMPORARIES)
            if t.grad_enabled:
                t.hold(made)
        return made

    def attend(t: Builder, h: Tensor) -> tuple[Tensor, Tensor]:
        return attention(t, h, source.hidden, d, make_bias, source.mask, causal=False, cached=True)

    attended, bias = t.call("EncDecAttention", attend, normed)
    return x + t.dropout(attended, d.dropout), bias


def dense(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`T5DenseActDense` or `T5DenseGatedActDense`: [B, S, H] to [B, S, H]; `wo` gets its input in its own type."""
    if d.gated:
        gate = t.activation(d.activation, t.linear("wi_0", x, d.intermediate))
        linear = t.linear("wi_1", x, d.intermediate)
        x = gate * linear  # both live until the module returns
    else:
        x = t.activation(d.activation, t.linear("wi", x, d.intermediate))
    x = t.dropout(x, d.dropout)
    x = ops.to(t, x, t.parameter(t.join("wo"), "weight", (d.hidden, d.intermediate)).dtype)
    return t.linear("wo", x, d.hidden)


def feed_forward(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`T5LayerFF`."""
    forwarded = norm(t, "layer_norm", x, d)
    forwarded = t.call("DenseReluDense", lambda t, h: dense(t, h, d), forwarded)
    return x + t.dropout(forwarded, d.dropout)


def stack(t: Builder, d: Dims, source: Source | None, input_ids: Tensor | None = None) -> Tensor:
    """`T5Stack`: the encoder (no source) or the decoder, [B, S, H]."""
    decoder = source is not None
    embedded = t.embedding("embed_tokens", (t.batch, t.sequence), d.vocabulary, d.hidden, indices=input_ids)
    t.require_input_gradient(embedded)  # either stack is a PreTrainedModel with an input embedding
    mask = t.causal_mask(embedded.dtype, padding=False) if decoder else bidirectional_mask(t, embedded.dtype)

    def block(
        t: Builder, x: Tensor, index: int, given: Tensor | None, source_given: Tensor | None, *hidden: Tensor
    ) -> Results:
        x, bias = t.call("layer.0", lambda t, h: self_attention(t, h, d, given, mask, decoder=decoder), x)
        source_bias = bound = None
        if x.dtype is DType.FLOAT16:
            x, bound = clamp_where_infinite(t, x)
        if source is not None:
            read = replace(source, hidden=hidden[0])
            x, source_bias = t.call("layer.1", lambda t, h: cross_attention(t, h, d, source_given, read), x)
            del t.layer_locals[:-1]  # one variable takes the weights of either attention
            if x.dtype is DType.FLOAT16:
                x, bound = clamp_where_infinite(t, x)
        x = t.call("layer.2" if decoder else "layer.1", lambda t, h: feed_forward(t, h, d), x)
        if x.dtype is DType.FLOAT16:  # not where `wo` is kept in float32, which makes the hidden states float32
            x, bound = clamp_where_infinite(t, x)
        del bound
        return x, bias, source_bias

    biases: list[Tensor | None] = [None, None]  # as the stack's variables hold them
    blocks = ByPosition(block, (), (source.hidden,) if source is not None else (), biases)
    start = [t.dropout(embedded, d.dropout)]  # the variable goes on to the first block's result
    count = d.decoder_layers if decoder else d.encoder_layers
    x = t.layers("block", count, blocks, start.pop(), kind=lambda index: index == 0)
    x = t.dropout(norm(t, "final_layer_norm", x, d), d.dropout)
    biases.clear()
    del embedded
    return x


# -- models -----------------------------------------------------------------------------------------------


def encode(t: Builder, d: Dims) -> Tensor:
    """The shared embedding and the encoder: [B, S, H]."""
    t.input_path = t.join("shared")
    table(t, "shared", d.vocabulary, d.hidden)
    t.tie(t.join("encoder.embed_tokens.weight"), t.join("shared.weight"))
    return t.call("encoder", lambda t: stack(t, d, None))


def model(t: Builder, d: Dims, held: list[Tensor]) -> Tensor:
    """`T5Model`: [B, T, H]. The embeddings of both stacks are the shared one, whatever `tie_word_embeddings` says.

    `held` takes what the caller's variables hold until it returns.
    """
    hidden = encode(t, d)
    t.outputs.append(detached(hidden))
    mask = bidirectional_mask(t, hidden.dtype, t.target_sequence, t.sequence)
    t.tie(t.join("decoder.embed_tokens.weight"), t.join("shared.weight"))
    with target_side(t):
        input_ids = shifted_labels(t)
        hidden = t.call("decoder", lambda t, h: stack(t, d, Source(h, mask), input_ids), hidden)
    held.append(input_ids)
    return hidden


def classification_head(t: Builder, x: Tensor, d: Dims, head: Head) -> Tensor:
    """`T5ClassificationHead`: [B, H] to [B, C]."""
    t.class_name(f"{d.prefix}ClassificationHead")
    x = t.dropout(x, d.classifier_dropout)
    x = t.activation("tanh", t.linear("dense", x, d.hidden, bias=True))
    x = t.dropout(x, d.classifier_dropout)
    return t.linear("out_proj", x, Dim(head.num_labels, "C"), bias=True)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    d = dims(config)
    held: list[Tensor] = []
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d, held)
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        hidden = end_of_sentence(t, t.call("transformer", lambda t: model(t, d, held)))
        t.head_modules.append("classification_head")
        logits = t.call("classification_head", lambda t, x: classification_head(t, x, d, head), hidden)
        return t.classification_loss(logits)
    if head.task is Task.TOKEN_CLASSIFICATION:
        hidden = t.dropout(t.call("transformer", lambda t: encode(t, d)), d.classifier_dropout)
        t.head_modules.append("classifier")
        return t.classification_loss(t.linear("classifier", hidden, Dim(head.num_labels, "C"), bias=True))
    hidden = model(t, d, held)
    scaled = ops.scale(t, hidden) if d.scale_outputs else hidden  # `decoder_outputs` keeps the unscaled one
    logits = t.output_embedding("lm_head", scaled, d.vocabulary, tied_to="shared" if d.tied else None)
    return masked_lm_loss(t, logits)


FAMILY = Family(
    forward,
    "transformer",
    (
        Task.SEQ2SEQ_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.PRE_TRAINING,
        Task.FEATURE_EXTRACTION,
    ),
    missing={"mt5": frozenset({Task.PRE_TRAINING})},
    walked=frozenset({"t5", "mt5"}),
    walked_tasks=frozenset({Task.SEQ2SEQ_LM}),
    folds=False,
)
