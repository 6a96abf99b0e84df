"""ViT: an image cut into patches by a convolution, an encoder, a classifier on the class token.

Symbols: B micro batch (images), N patches and the class token, H hidden size, A attention heads, D head size,
I intermediate size, C labels.

Source: transformers 5.23 models/vit/modeling_vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.convolution import conv, weight_dtype
from memplan.step.encoder import expand, first_token
from memplan.step.split import concatenate
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one encoder, with their symbols; `image` and `patch` are (height, width) in pixels."""

    hidden: Dim
    heads: Dim
    head_size: Dim
    intermediate: Dim
    image: tuple[int, int]
    patch: tuple[int, int]
    channels: int
    tokens: Dim
    pooler: int
    layers: int
    activation: str
    pooler_activation: str
    qkv_bias: bool
    dropout: float
    attention_dropout: float


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    image, patch = _pair(config["image_size"]), _pair(config["patch_size"])
    return Dims(
        hidden=Dim(hidden, "H"),
        heads=Dim(heads, "A"),
        head_size=Dim(config.get("head_dim") or hidden // heads, "D"),
        intermediate=Dim(config["intermediate_size"], "I"),
        image=image,
        patch=patch,
        channels=config["num_channels"],
        tokens=Dim((image[0] // patch[0]) * (image[1] // patch[1]) + 1, "N"),
        pooler=config["pooler_output_size"],
        layers=config["num_hidden_layers"],
        activation=config["hidden_act"],
        pooler_activation=config["pooler_act"],
        qkv_bias=config["qkv_bias"],
        dropout=config["hidden_dropout_prob"],
        attention_dropout=config["attention_probs_dropout_prob"],
    )


def embeddings(t: Builder, d: Dims, pixels: Tensor) -> Tensor:
    """Patches, the class token in front, positions added: [B, N, H]."""
    cls_token = t.bare("cls_token", (1, 1, d.hidden), owner_class="ViTEmbeddings")
    position_embeddings = t.bare("position_embeddings", (1, d.tokens, d.hidden), owner_class="ViTEmbeddings")
    t.input_path = t.join("patch_embeddings")
    grid = (d.image[0] // d.patch[0], d.image[1] // d.patch[1])
    shape = (t.batch, d.hidden, *grid)
    patches = conv(t, "patch_embeddings.projection", pixels, d.hidden, d.patch, shape, in_channels=d.channels)
    patches = t.view(patches, (t.batch, d.tokens - 1, d.hidden))
    cls_tokens = expand(t, cls_token, (t.batch, 1, d.hidden))
    x = concatenate(t, (cls_tokens, patches), (t.batch, d.tokens, d.hidden))
    x = x + position_embeddings
    del patches, cls_tokens
    return t.dropout(x, d.dropout)


def attention(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, N, H] to [B, N, H]."""
    width = d.heads * d.head_size
    q, k, v = (
        t.split_heads(t.linear(name, x, width, bias=d.qkv_bias), d.heads, d.head_size)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    out = t.attention(q, k, v, dropout=d.attention_dropout, causal=False)
    return t.linear("o_proj", t.view(out, (*x.shape[:-1], width)), d.hidden, bias=True)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """X [B, N, H] to [B, N, H]."""
    x = t.linear("fc1", x, d.intermediate, bias=True)
    x = t.activation(d.activation, x)
    return t.linear("fc2", x, d.hidden, bias=True)


def layer(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """One layer: x [B, N, H] to [B, N, H]."""
    residual = x
    x = t.layer_norm("layernorm_before", x)
    x = t.call("attention", lambda t, h: attention(t, h, d), x)
    x = t.dropout(x, d.dropout)
    x = x + residual
    residual = x
    x = t.layer_norm("layernorm_after", x)
    x = t.call("mlp", lambda t, h: mlp(t, h, d), x)
    x = t.dropout(x, d.dropout)
    return x + residual


def model(t: Builder, d: Dims) -> Tensor:
    """The encoder without pooler and head: [B, N, H]."""
    pixels = t.new((t.batch, d.channels, *d.image), DType.FLOAT32, "pixel_values")
    cast = ops.to(t, pixels, weight_dtype(t, "embeddings.patch_embeddings.projection"))
    embedded = t.call("embeddings", lambda t, p: embeddings(t, d, p), cast)
    x = t.layers("layers", d.layers, lambda t, h, _: layer(t, h, d), embedded)
    x = t.layer_norm("layernorm", x)
    del pixels, cast, embedded
    return x


def pooler(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """The class token through a linear and an activation."""
    return t.activation(d.pooler_activation, t.linear("dense", first_token(t, x), d.pooler, bias=True))


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        hidden = model(t, d)
        t.call("pooler", lambda t, x: pooler(t, x, d), hidden)
        return hidden
    hidden = t.call("vit", lambda t: model(t, d))
    t.head_modules.append("classifier")
    logits = t.linear("classifier", first_token(t, hidden), Dim(head.num_labels, "C"), bias=True)
    return t.classification_loss(logits)


FAMILY = Family(forward, "vit", (Task.IMAGE_CLASSIFICATION, Task.FEATURE_EXTRACTION))
