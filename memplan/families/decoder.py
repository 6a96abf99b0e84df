"""What the decoder-only families share: sizes, rotary embedding, the gated MLP, the frame around the layers, heads.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, V vocabulary, L layers.

Source: transformers 5.23 models/llama/modeling_llama.py, from which the modular files of the others derive, and
modeling_layers.py (heads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Head
from memplan.families.heads import Finish, causal_lm, sequence_classification, token_classification
from memplan.recipe import Task
from memplan.step import liger
from memplan.step.builder import Builder, PerLayer
from memplan.step.masks import layer_masks, mask_kind, slides
from memplan.step.split import turned, unflatten
from memplan.step.tensor import Dim, Tensor

Norm = Callable[[Builder, str, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols.

    Attributes:
        rotary_size: how many of the D elements of a head are rotated.
        attention_dropout: probability, in training.
    """

    hidden: Dim
    heads: Dim
    kv_heads: Dim
    head_size: Dim
    rotary_size: int
    intermediate: Dim
    vocabulary: Dim
    layers: int
    activation: str
    attention_dropout: float


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    heads, head_size = config["num_attention_heads"], config["head_dim"]
    rotary_factor = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    return Dims(
        hidden=Dim(config["hidden_size"], "H"),
        heads=Dim(heads, "A"),
        kv_heads=Dim(config.get("num_key_value_heads") or heads, "K"),
        head_size=Dim(head_size, "D"),
        rotary_size=int(head_size * rotary_factor),
        intermediate=Dim(config["intermediate_size"], "I"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["num_hidden_layers"],
        activation=config.get("hidden_act") or config["hidden_activation"],
        attention_dropout=config.get("attention_dropout", 0.0),
    )


@dataclass(frozen=True, slots=True)
class Position:
    """What a layer's attention gets from the model: the rotary table and its mask.

    Attributes:
        cos, sin: [1, S, D] each.
        mask: None where the kernel is causal by itself.
        index: of the layer.
        position_ids: every layer is given them, so a checkpointed layer keeps them until its backward.
        slides: whether its key/value cache has a window.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    index: int
    position_ids: Tensor
    slides: bool


Layer = Callable[[Builder, Tensor, Position], Tensor]
Tables = Callable[[Builder, DType], Sequence[tuple[Tensor, Tensor]]]


def rotary_embedding(t: Builder, dtype: DType, size: int, *, prefix: str = "") -> tuple[Tensor, Tensor]:
    """`rotary_emb`: cos and sin [1, S, size]; its frequencies are buffers, whose names `prefix` begins."""

    def forward(t: Builder) -> tuple[Tensor, Tensor]:
        rotary_buffers(t, size, prefix)
        return t.rotary_table(dtype, size, t.sequence)

    return t.call("rotary_emb", forward)


def rotary_buffers(t: Builder, size: int, prefix: str = "") -> None:
    """The frequencies of `rotary_emb`, as they are used and as they were at first."""
    count = -(-size // 2)  # of torch.arange(0, size, 2)
    t.buffer(f"{prefix}inv_freq", (count,))
    t.buffer(f"{prefix}original_inv_freq", (count,))


def embed_tokens(t: Builder, config: Mapping[str, Any], *, class_name: str = "Embedding") -> Tensor:
    """The input embedding: [B, S, H]."""
    d = dims(config)
    return t.input_embedding(
        "embed_tokens",
        (t.batch, t.sequence),
        d.vocabulary,
        d.hidden,
        class_name=class_name,
        is_result=class_name == "Embedding",
    )


def decoder_layers(
    t: Builder,
    inputs_embeds: Tensor,
    config: Mapping[str, Any],
    layer: Layer,
    norm: Norm,
    *,
    tables: Tables | None = None,
    dropout: float = 0.0,
    kind: Callable[[int], object] | None = None,
    final_norm: str = "norm",
) -> Tensor:
    """`LlamaModel.forward` from the embeddings on: the layers and the last norm: [B, S, H].

    Args:
        t: the tape.
        inputs_embeds: [B, S, H].
        config: normalised.
        layer: one decoder layer.
        norm: the class of the last norm, called with (tape, name, x).
        tables: makes the rotary table of every layer; by default one for all, of the hidden states' type.
        dropout: probability on the embeddings before the layers.
        kind: what distinguishes layers beyond their parameters and the kind of their mask.
        final_norm: name of the last norm.
    """
    d = dims(config)
    position_ids = t.position_ids(t.sequence)
    masks = layer_masks(t, inputs_embeds.dtype, config)
    x = t.dropout(inputs_embeds, dropout)
    rotary = tables(t, x.dtype) if tables else [rotary_embedding(t, x.dtype, d.rotary_size)] * d.layers

    def of(index: int) -> Callable[[Builder, Tensor, int], Tensor]:
        at = Position(*rotary[index], masks[index], index, position_ids, slides(config, index))
        return lambda t, h, _: layer(t, h, at)

    x = t.layers(
        "layers",
        d.layers,
        PerLayer(of),
        x,
        kind=lambda index: (mask_kind(config, index), kind(index) if kind else None),
    )
    return norm(t, final_norm, x)


def decoder(
    t: Builder,
    config: Mapping[str, Any],
    layer: Layer,
    norm: Norm,
    *,
    tables: Tables | None = None,
    dropout: float = 0.0,
    kind: Callable[[int], object] | None = None,
    final_norm: str = "norm",
) -> Tensor:
    """`LlamaModel.forward`: the embeddings, then `decoder_layers` with the same arguments: [B, S, H]."""
    inputs_embeds = embed_tokens(t, config)
    return decoder_layers(
        t, inputs_embeds, config, layer, norm, tables=tables, dropout=dropout, kind=kind, final_norm=final_norm
    )


def split_normed_heads(t: Builder, x: Tensor, heads: Dim, head_size: Dim, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, S, A·D] viewed as [B, S, A, D], normed there, and turned to [B, A, S, D] (Qwen3)."""
    return turned(t, norm(unflatten(t, x, (*x.shape[:-1], heads, head_size))))


def gated_mlp(t: Builder, x: Tensor, d: Dims, *, width: int | None = None, bias: bool = False) -> Tensor:
    """`LlamaMLP`: down(act(gate(x)) * up(x)), x [..., H] to [..., H]; `width` is I unless given."""
    width = width or d.intermediate
    if t.settings.liger_kernels:
        gate = t.linear("gate_proj", x, width, bias=bias)
        return t.linear(
            "down_proj", liger.silu_mul(t, gate, t.linear("up_proj", x, width, bias=bias)), d.hidden, bias=bias
        )
    return t.linear(
        "down_proj",
        t.activation(d.activation, t.linear("gate_proj", x, width, bias=bias))
        * t.linear("up_proj", x, width, bias=bias),
        d.hidden,
        bias=bias,
    )


def with_head(
    t: Builder,
    body: Callable[[Builder], Tensor],
    config: Mapping[str, Any],
    head: Head,
    *,
    bias: bool = False,
    finish: Finish | None = None,
) -> Tensor:
    """The decoder `body` as the headless model, or as `model` under a head; returns the loss.

    Args:
        t: the tape.
        body: the decoder without a head.
        config: normalised.
        head: which head.
        bias: whether `lm_head` has one.
        finish: what is done to the logits before the loss.
    """
    if head.task is Task.FEATURE_EXTRACTION:
        return body(t)
    if head.task is Task.CAUSAL_LM:
        return causal_lm(t, body, config, base="model", embedding="embed_tokens", bias=bias, finish=finish)
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        return sequence_classification(t, body, head, base="model")
    return token_classification(t, body, head, base="model", dropout=classifier_dropout(config))


def classifier_dropout(config: Mapping[str, Any]) -> float:
    """Probability in front of a token classifier (modeling_layers.py, `GenericForTokenClassification`)."""
    for key in ("classifier_dropout", "hidden_dropout"):
        if config.get(key) is not None:
            return float(config[key])
    return 0.1


TEXT_TASKS = (Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.FEATURE_EXTRACTION)
