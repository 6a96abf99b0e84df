"""Llama and the models that differ from it in a bias, a norm or a factor: Mistral, Qwen2, Qwen3, SmolLM3, Granite.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, V vocabulary, L layers.

Source: transformers 5.23 models/{llama,mistral,qwen2,qwen3,smollm3,granite}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.families import Family, Head, unsloth
from memplan.families.decoder import (
    TEXT_TASKS,
    Dims,
    Position,
    decoder_layers,
    dims,
    embed_tokens,
    gated_mlp,
    split_normed_heads,
    with_head,
)
from memplan.recipe import Stack, Task
from memplan.step import ops
from memplan.step.adapters.adaption_prompt import Attention, with_adaption_prompt
from memplan.step.builder import Builder
from memplan.step.tensor import Dim, Tensor

# Model types with the prefix of their classes; "qwen2_5_vl_text" is a part of another model.
MODEL_TYPES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen2_5_vl_text": "Qwen2_5_VL",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """What distinguishes the members of the family.

    Attributes:
        norm_class: torch class of the norms.
        qkv_bias, output_bias, mlp_bias: which linear layers have biases.
        qk_norm: RMSNorm on each head of q and k.
        rotated: per layer, whether q and k are rotated (SmolLM3 leaves every fourth alone).
        scaled: hidden states, residuals and logits are multiplied by constants (Granite).
    """

    norm_class: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rotated: tuple[bool, ...]
    scaled: bool


def variant(config: Mapping[str, Any]) -> Variant:
    """Read the differences from a normalised config."""
    model_type = config["model_type"]
    qwen2 = model_type in ("qwen2", "qwen2_5_vl_text")
    return Variant(
        norm_class=f"{MODEL_TYPES[model_type]}RMSNorm",
        qkv_bias=qwen2 or bool(config.get("attention_bias")),
        output_bias=bool(config.get("attention_bias")) and not qwen2,
        mlp_bias=bool(config.get("mlp_bias")),
        qk_norm=model_type == "qwen3",
        rotated=tuple(map(bool, config.get("no_rope_layers") or [1] * config["num_hidden_layers"])),
        scaled=model_type == "granite",
    )


def attention(t: Builder, x: Tensor, d: Dims, v: Variant, at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    query = _heads(t, "q", t.linear("q_proj", x, d.heads * d.head_size, bias=v.qkv_bias), d.heads, d, v)
    key = _heads(t, "k", t.linear("k_proj", x, d.kv_heads * d.head_size, bias=v.qkv_bias), d.kv_heads, d, v)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=v.qkv_bias), d.kv_heads, d.head_size)
    if v.rotated[at.index]:
        query, key = t.apply_rotary_pos_emb(query, key, at.cos, at.sin)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=v.output_bias)


def _wrapped(t: Builder, d: Dims, v: Variant, at: Position) -> Attention:
    kv_size, size = d.kv_heads * d.head_size, d.heads * d.head_size
    return Attention(
        forward=lambda x: attention(t, x, d, v, at),
        q=lambda x: t.linear("q_proj", x, size, bias=v.qkv_bias),
        k=lambda x: t.linear("k_proj", x, kv_size, bias=v.qkv_bias),
        v=lambda x: t.linear("v_proj", x, kv_size, bias=v.qkv_bias),
        o=lambda x: t.linear("o_proj", x, d.hidden, bias=v.output_bias),
        cos=at.cos,
        sin=at.sin,
        heads=d.heads,
        kv_heads=d.kv_heads,
        head_size=d.head_size,
    )


def _heads(t: Builder, name: str, x: Tensor, heads: Dim, d: Dims, v: Variant) -> Tensor:
    if not v.qk_norm:
        return t.split_heads(x, heads, d.head_size)
    return split_normed_heads(
        t, x, heads, d.head_size, lambda h: t.rms_norm(f"{name}_norm", h, class_name=v.norm_class)
    )


def decoder_layer(t: Builder, x: Tensor, d: Dims, v: Variant, at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.rms_norm("input_layernorm", x, class_name=v.norm_class)
    x = t.call("self_attn", lambda t, h: with_adaption_prompt(t, h, _wrapped(t, d, v, at)), x)
    x = residual + (ops.scale(t, x) if v.scaled else x)
    residual = x
    x = t.rms_norm("post_attention_layernorm", x, class_name=v.norm_class)
    x = t.call("mlp", lambda t, h: gated_mlp(t, h, d, bias=v.mlp_bias), x)
    return residual + (ops.scale(t, x) if v.scaled else x)


def embeddings(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """`embed_tokens`, in Granite times a constant: [B, S, H]."""
    inputs_embeds = embed_tokens(t, config)
    return ops.scale(t, inputs_embeds) if variant(config).scaled else inputs_embeds


def model(t: Builder, config: Mapping[str, Any], inputs_embeds: Tensor) -> Tensor:
    """The decoder without embedding and head: [B, S, H] to [B, S, H]."""
    d, v = dims(config), variant(config)
    return decoder_layers(
        t,
        inputs_embeds,
        config,
        lambda t, h, at: decoder_layer(t, h, d, v, at),
        lambda t, name, h: t.rms_norm(name, h, class_name=v.norm_class),
        kind=lambda index: v.rotated[index],
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""

    def body(t: Builder) -> Tensor:
        if t.settings.stack == Stack.UNSLOTH and not t.declaring:
            v = variant(config)
            return unsloth.decoder(t, config, qk_norm=v.qk_norm, qkv_bias=v.qkv_bias)
        return model(t, config, embeddings(t, config))

    scaled = config["model_type"] == "granite"
    return with_head(t, body, config, head, finish=_divide if scaled else None)


def _divide(t: Builder, logits: Tensor) -> Tensor:
    return ops.scale(t, logits, "div")


FAMILY = Family(
    forward,
    "model",
    TEXT_TASKS,
    walked=frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"}),
    missing={"granite": frozenset({Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION})},
)
