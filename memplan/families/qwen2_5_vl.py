"""Qwen2.5-VL: a vision tower with windowed attention over patches of images of any size, the Qwen2 text model.

Symbols: B micro batch, S sequence length, N patches of all images, W hidden size of the tower, A attention heads, D head
size, I intermediate size, G patches merged into one token.

Source: transformers 5.23 models/qwen2_5_vl/modeling_qwen2_5_vl.py.

Known limits:
    The parameters are exact; a step is not walked, because the sizes of the images decide it and a recipe has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.families import Family, Head, llama
from memplan.families.decoder import rotary_buffers
from memplan.families.multimodal import IMAGE_TEXT_TASKS, insert_features, with_image_text_head
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.convolution import conv
from memplan.step.split import split
from memplan.step.tensor import Dim, Tensor


def rms_norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`Qwen2_5_VLRMSNorm`."""
    return t.rms_norm(name, x, class_name="Qwen2_5_VLRMSNorm")


def patch_embed(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """A convolution over each patch of each pair of frames: [N, pixels of a patch] to [N, W]."""
    count, width = x.shape[0], Dim(config["hidden_size"], "W")
    kernel = (config["temporal_patch_size"], config["patch_size"], config["patch_size"])
    x = t.view(x, (count, config["in_channels"], *kernel))
    weight = t.parameter(t.join("proj"), "weight", (width, config["in_channels"], *kernel))
    x = ops.to(t, x, weight.dtype)
    shape = (count, width, 1, 1, 1)
    x = conv(t, "proj", x, width, kernel, shape, in_channels=config["in_channels"], bias=False)
    return t.view(x, (count, width))


def attention(t: Builder, x: Tensor, config: Mapping[str, Any], cos: Tensor, sin: Tensor) -> Tensor:
    """Attention within windows or images: x [N, W] to [N, W]."""
    heads, size, width = Dim(config["num_heads"], "A"), Dim(config["head_dim"], "D"), x.shape[-1]
    qkv = t.view(t.linear("qkv", x, 3 * width, bias=True), (1, x.shape[0], 3 * width))
    query, key, value = (t.split_heads(part, heads, size) for part in split(t, qkv, (width, width, width)))
    query, key = t.apply_rotary_pos_emb(query, key, cos, sin)
    out = t.attention(query, key, value, causal=False)
    return t.linear("proj", t.view(out, x.shape), width, bias=True)


def mlp(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The gated MLP with biases: x [N, W] to [N, W]."""
    width, hidden = Dim(config["intermediate_size"], "I"), x.shape[-1]
    gate = t.activation(config["hidden_act"], t.linear("gate_proj", x, width, bias=True))
    return t.linear("down_proj", gate * t.linear("up_proj", x, width, bias=True), hidden, bias=True)


def block(t: Builder, x: Tensor, config: Mapping[str, Any], cos: Tensor, sin: Tensor) -> Tensor:
    """One layer: x [N, W] to [N, W]."""
    x = x + t.call("attn", lambda t, h: attention(t, h, config, cos, sin), rms_norm(t, "norm1", x))
    return x + t.call("mlp", lambda t, h: mlp(t, h, config), rms_norm(t, "norm2", x))


def merger(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Neighbouring patches joined and projected: [N, W] to [N / G, H]."""
    group = config["spatial_merge_size"] ** 2
    x = t.view(rms_norm(t, "ln_q", x), (x.shape[0] // group, group * x.shape[1]))
    x = t.activation("gelu", t.linear("mlp.0", x, x.shape[1], bias=True))
    return t.linear("mlp.2", x, Dim(config["out_hidden_size"], "H"), bias=True)


def vision_model(t: Builder, pixels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """`Qwen2_5_VisionTransformerPretrainedModel`: tokens of all images [N / G, H]."""

    def table(t: Builder) -> tuple[Tensor, Tensor]:
        # Frequencies of height and width, each for half of the head (`compute_axial_rope_parameters`).
        rotary_buffers(t, config["head_dim"] // 2)
        return t.rotary_table(DType.FLOAT32, config["head_dim"], pixels.shape[0])

    x = t.call("patch_embed", lambda t, p: patch_embed(t, p, config), pixels)
    cos, sin = t.call("rotary_pos_emb", table)
    whole = frozenset(config["fullatt_block_indexes"])
    x = t.layers(
        "blocks", config["depth"], lambda t, h, _: block(t, h, config, cos, sin), x, kind=lambda index: index in whole
    )
    return t.call("merger", lambda t, h: merger(t, h, config), x)


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """`Qwen2_5_VLModel`: [B, S, H].

    Raises:
        UnsupportedError: asked for more than the declaration.
    """
    if not t.declaring:
        raise UnsupportedError("a step of qwen2_5_vl: it depends on the sizes of the images")
    vision, text = config["vision_config"], config["text_config"]
    patch_pixels = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    pixels = t.new((vision["spatial_merge_size"] ** 2, patch_pixels), DType.FLOAT32, "pixel_values")
    inputs_embeds = t.call("language_model", lambda t: llama.embeddings(t, text))
    features = t.call("visual", lambda t, p: vision_model(t, p, vision), pixels)
    inputs_embeds = insert_features(t, inputs_embeds, features)
    return t.call("language_model", lambda t, h: llama.model(t, text, h), inputs_embeds)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    return with_image_text_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", IMAGE_TEXT_TASKS)
