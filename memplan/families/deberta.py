"""DeBERTa and DeBERTa v2 / v3: disentangled attention over content and relative positions, written out.

Symbols: B micro batch, S sequence length, H hidden size, E word embedding size, A attention heads, D head size,
I intermediate size, R relative positions (both directions), P positions, V vocabulary, C labels.

Source: transformers 5.23 models/deberta/modeling_deberta.py, models/deberta_v2/modeling_deberta_v2.py.

Known limits:
    The step is that of the third version (version 2's classes without a convolution); of the others parameters are exact.
    A sequence classifier picks the labelled rows by their values, which no trace on fake tensors can follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.estimate import Phase
from memplan.families import Family, Head
from memplan.families.bert import token_classifier
from memplan.families.deberta_attention import Dims, Positions, attention_v1, attention_v2, dims, norm
from memplan.recipe import Task
from memplan.step.attention import detached
from memplan.step.builder import Builder
from memplan.step.convolution import conv
from memplan.step.disentangled import relative_positions
from memplan.step.encoder import first_token, masked_lm_loss
from memplan.step.tables import table
from memplan.step.tensor import Tensor

# -- encoder ----------------------------------------------------------------------------------------------


def embeddings(t: Builder, d: Dims, ones: Tensor | None) -> Tensor:
    """Words, and positions and token types where the config has them: [B, S, H]; `ones` is the mask that was made."""
    t.buffer("position_ids", (1, d.positions), DType.INT64)
    words = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.word)
    x = words
    if d.input_positions:
        positions = t.embedding("position_embeddings", (1, t.sequence), d.positions, d.word)
        x = x + positions
    else:
        positions = t.new(x.shape, x.dtype, "zeros_like")
    if d.token_types:
        x = x + t.embedding("token_type_embeddings", (t.batch, t.sequence), d.token_types, d.word)
    if d.word != d.hidden:
        x = t.linear("embed_proj", x, d.hidden)
    x = norm(t, "LayerNorm", x, d.version)
    column = (t.batch, t.sequence, 1)
    as_it_is = ones is not None and ones.dtype is x.dtype
    x = x * (t.view(ones, column) if ones is not None and as_it_is else t.new(column, x.dtype, "_to_copy"))
    x = t.dropout(x, d.dropout)
    del words, positions
    return x


def output(t: Builder, x: Tensor, residual: Tensor, d: Dims) -> Tensor:
    """Back to [B, S, H], the residual added, normed."""
    x = t.linear("dense", x, d.hidden, bias=True)
    x = t.dropout(x, d.dropout)
    return norm(t, "LayerNorm", x + residual, d.version)


def attention(t: Builder, x: Tensor, d: Dims, mask: Tensor, positions: Positions | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    attend = attention_v2 if d.version == 2 else attention_v1
    attended = t.call("self", lambda t, h: attend(t, h, d, mask, positions), x)
    return t.call("output", lambda t, h, r: output(t, h, r, d), attended, x)


def intermediate(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, S, H] to [B, S, I]."""
    return t.activation(d.activation, t.linear("dense", x, d.intermediate, bias=True))


def layer(t: Builder, x: Tensor, d: Dims, mask: Tensor, positions: Positions | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    attended = t.call("attention", lambda t, h: attention(t, h, d, mask, positions), x)
    wide = t.call("intermediate", lambda t, h: intermediate(t, h, d), attended)
    return t.call("output", lambda t, h, r: output(t, h, r, d), wide, attended)


def convolution(t: Builder, x: Tensor, residual: Tensor, d: Dims) -> Tensor:
    """`ConvLayer` after the first layer: a convolution of the embeddings added to its result, [B, S, H]."""
    out = conv(t, "conv", x, d.hidden, (d.conv_kernel,), x.shape, in_channels=d.hidden, groups=d.conv_groups)
    out = t.activation(d.conv_activation, t.dropout(out, d.dropout))
    x = t.layer_norm("LayerNorm", residual + out)
    return x * t.new((t.batch, t.sequence, 1), x.dtype, "_to_copy")


def encoder(t: Builder, x: Tensor, d: Dims, given: DType, states: list[Tensor]) -> Tensor:
    """The layers: x [B, S, H] to [B, S, H]; the attention mask is of the type `given`, `states` takes every layer's result."""
    mask = t.new((t.batch, 1, t.sequence, t.sequence), given, "mul")
    positions = None
    if d.relative_attention:
        index = relative_positions(t, d.bucketed)
        positions = Positions(index, relative_embeddings(t, d))
    elif d.norm_relative and t.declaring:
        norm(t, "LayerNorm", x, d.version)

    def one(t: Builder, h: Tensor, index: int) -> Tensor:
        h = layer(t, h, d, mask, positions)
        if index == 0 and d.conv_kernel:
            t.path = t.module = t.path.rpartition(".layer.")[0]
            h = t.call("conv", lambda t, e, r: convolution(t, e, r, d), x, h)
        if t.phase != Phase.BACKWARD:
            states.append(detached(h))
        return h

    return t.layers("layer", d.layers, one, x, kind=lambda index: index == 0)


def relative_embeddings(t: Builder, d: Dims) -> Tensor:
    """`get_rel_embedding`: the table itself, normed where the config says so, [R, H]."""
    weight = table(t, "rel_embeddings", d.relative, d.hidden)
    return norm(t, "LayerNorm", weight, d.version) if d.norm_relative else weight


def model(t: Builder, d: Dims) -> Tensor:
    """The encoder without a head: [B, S, H]."""
    given = DType.INT64 if t.settings.padding else DType.FLOAT32  # a mask of ones is made where the batch has none
    ones = None if t.settings.padding else t.new((t.batch, t.sequence), given, "ones")
    token_types = t.new((t.batch, t.sequence), DType.INT64, "zeros")
    embedded = t.call("embeddings", lambda t: embeddings(t, d, ones))
    states: list[Tensor] = []  # `output_hidden_states=True`, whatever is asked for
    x = t.call("encoder", lambda t, x: encoder(t, x, d, given, states), embedded)
    states.clear()  # checkpoints keep the list with what they call
    del token_types
    return x


# -- heads ------------------------------------------------------------------------------------------------


def transform(t: Builder, x: Tensor, d: Dims, width: int) -> Tensor:
    """A linear, the activation and a plain `nn.LayerNorm`: [B, S, E]."""
    return t.layer_norm("LayerNorm", t.activation(d.activation, t.linear("dense", x, width, bias=True)))


def legacy_predictions(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`LegacyDebertaV2LMPredictionHead`, as BERT's: [B, S, V]."""
    t.bare("bias", (d.vocabulary,))
    if d.tied:
        t.tie(t.join("decoder.bias"), t.join("bias"))
    x = t.call("transform", lambda t, h: transform(t, h, d, d.word), x)
    tied_to = "deberta.embeddings.word_embeddings" if d.tied else None
    return t.output_embedding("decoder", x, d.vocabulary, tied_to=tied_to, bias=True)


def predictions(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`DebertaV2LMPredictionHead`: [B, S, V] from the input embedding itself and a bias.

    `get_output_embeddings` names its `dense`, which makes no logits.
    """
    bias = t.bare("bias", (d.vocabulary,))
    t.output_path = t.join("dense")
    x = transform(t, x, d, d.hidden)
    weight = t.parameter("deberta.embeddings.word_embeddings", "weight", (d.vocabulary, d.word))
    return t.matmul(x, weight, None) + bias


def context_pooler(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """`ContextPooler`: the first token, dropout, a linear, an activation, [B, H]."""
    x = t.dropout(first_token(t, x), config["pooler_dropout"])
    return t.activation(config["pooler_hidden_act"], t.linear("dense", x, config["pooler_hidden_size"], bias=True))


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        return model(t, d)
    hidden = t.call("deberta", lambda t: model(t, d))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        t.head_modules.append("pooler")
        pooled = t.call("pooler", lambda t, x: context_pooler(t, x, config), hidden)
        return token_classifier(t, pooled, head, d.dropout)
    if head.task is Task.TOKEN_CLASSIFICATION:
        return token_classifier(t, hidden, head, d.dropout)
    if config["legacy"]:
        t.head_modules.append("cls")
        logits = t.call("cls.predictions", lambda t, x: legacy_predictions(t, x, d), hidden)
    else:
        t.head_modules.append("lm_predictions")
        logits = t.call("lm_predictions.lm_head", lambda t, x: predictions(t, x, d), hidden)
    return masked_lm_loss(t, logits)


FAMILY = Family(
    forward,
    "deberta",
    (
        Task.MASKED_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.PRE_TRAINING,
        Task.FEATURE_EXTRACTION,
    ),
    walked=frozenset({"deberta-v2"}),
    walked_tasks=frozenset({Task.MASKED_LM, Task.TOKEN_CLASSIFICATION}),
    walked_int8=False,
    folds=False,
)
