"""Vision towers of image-text models: SigLIP and CLIP.

Symbols: B images, P patches (and one class token in CLIP), H hidden size, A attention heads, D head size,
I intermediate size.

Source: transformers 5.23 models/siglip/modeling_siglip.py, models/clip/modeling_clip.py.

Known limits:
    Without SigLIP's pooling head, which no image-text model here has. That the output object holds the hidden states of
    every layer until the model returns is not on the tape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.convolution import conv
from memplan.step.encoder import expand
from memplan.step.split import concatenate, narrow
from memplan.step.tensor import Dim, Tensor


def pixel_values(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """One image a row: float32 [B, channels, height, width]."""
    size = config["image_size"]
    return t.new((t.batch, config["num_channels"], size, size), DType.FLOAT32, "pixel_values")


def _is_clip(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "clip_vision_model")


def embeddings(t: Builder, pixels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Patches, in CLIP behind a class token, plus positions: [B, P, H]."""
    width, patch = Dim(config["hidden_size"], "H"), config["patch_size"]
    side = config["image_size"] // patch
    batch, channels = pixels.shape[:2]
    class_embedding = t.bare("class_embedding", (width,)) if _is_clip(config) else None
    weight = t.parameter(t.join("patch_embedding"), "weight", (width, channels, patch, patch))
    patches = conv(
        t,
        "patch_embedding",
        ops.to(t, pixels, weight.dtype),
        width,
        (patch, patch),
        (batch, width, side, side),
        in_channels=channels,
        bias=not _is_clip(config),
    )
    x = t.view(patches, (batch, side * side, width))
    if class_embedding is not None:
        first = expand(t, class_embedding, (batch, 1, width))
        x = concatenate(t, (first, x), (batch, side * side + 1, width))
    t.buffer("position_ids", (1, x.shape[1]), DType.INT64)
    return x + t.embedding("position_embedding", (1, x.shape[1]), x.shape[1], width)


def attention(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Attention over all positions: x [B, P, H] to [B, P, H]."""
    heads, size = Dim(config["num_attention_heads"], "A"), Dim(config["head_dim"], "D")
    query, key, value = (
        t.split_heads(t.linear(name, x, x.shape[-1], bias=True), heads, size) for name in ("q_proj", "k_proj", "v_proj")
    )
    out = t.attention(query, key, value, dropout=config["attention_dropout"], causal=False)
    return t.linear("out_proj", t.view(out, x.shape), x.shape[-1], bias=True)


def mlp(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """X [B, P, H] to [B, P, H]."""
    hidden = x.shape[-1]
    x = t.linear("fc1", x, Dim(config["intermediate_size"], "I"), bias=True)
    x = quick_gelu(t, x) if config["hidden_act"] == "quick_gelu" else t.activation(config["hidden_act"], x)
    return t.linear("fc2", x, hidden, bias=True)


def quick_gelu(t: Builder, x: Tensor) -> Tensor:
    """`QuickGELUActivation`: x * sigmoid(1.702 * x)."""
    return x * t.activation("sigmoid", ops.scale(t, x))


def encoder_layer(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """One layer: x [B, P, H] to [B, P, H]."""
    residual = x
    x = t.layer_norm("layer_norm1", x)
    x = t.call("self_attn", lambda t, h: attention(t, h, config), x)
    x = residual + x
    residual = x
    x = t.layer_norm("layer_norm2", x)
    x = t.call("mlp", lambda t, h: mlp(t, h, config), x)
    return residual + x


def vision_model(t: Builder, pixels: Tensor, config: Mapping[str, Any], *, feature_layer: int | None = None) -> Tensor:
    """`SiglipVisionModel` or `CLIPVisionModel`: its last hidden state, or that of one layer: [B, P, H].

    Args:
        t: the builder.
        pixels: [B, channels, height, width].
        config: of the tower, normalised.
        feature_layer: which of the L + 1 recorded hidden states, which SigLIP does not norm.

    Raises:
        UnsupportedError: another kind of tower, or a pooling head.
    """
    if config["model_type"] not in ("siglip_vision_model", "clip_vision_model"):
        raise UnsupportedError(f"vision tower {config['model_type']}")
    if config.get("vision_use_head"):
        raise UnsupportedError("vision tower with a pooling head")
    count = config["num_hidden_layers"]
    chosen = range(count + 1)[-1 if feature_layer is None else feature_layer]
    features: list[Tensor] = []

    def layer(t: Builder, x: Tensor, index: int) -> Tensor:
        if index == chosen:
            features.append(x)
        return encoder_layer(t, x, config)

    def encoder(t: Builder, x: Tensor) -> Tensor:
        return t.layers("layers", count, layer, x, kind=lambda index: index >= chosen)

    x = t.call("embeddings", lambda t, p: embeddings(t, p, config), pixels)
    if _is_clip(config):
        last = x = t.call("encoder", encoder, t.layer_norm("pre_layrnorm", x))
        t.layer_norm("post_layernorm", narrow(t, x, (x.shape[0], x.shape[2]), "select"))
    else:
        x = t.call("encoder", encoder, x)
        last = t.layer_norm("post_layernorm", x)
    if feature_layer is None:
        return last
    return features[0] if features else x
