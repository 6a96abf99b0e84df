"""Llama and the models that share its decoder: Llama, Mistral, Qwen2, Qwen3, SmolLM3, Granite, Phi-3 and others.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size, I intermediate size,
V vocabulary, L layers.

Source: transformers 5.23 models/llama/modeling_llama.py and the modular files that derive from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.families import Family, Head
from memplan.families.heads import causal_lm, sequence_classification, token_classification
from memplan.recipe import Task
from memplan.step.builder import Builder
from memplan.step.tensor import Dim, Tensor


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one decoder, with their symbols."""

    hidden: Dim
    heads: Dim
    kv_heads: Dim
    head_size: Dim
    intermediate: Dim
    vocabulary: Dim
    layers: int
    activation: str
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool


def dims(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a normalised config."""
    model_type = config["model_type"]
    heads = config["num_attention_heads"]
    attention_bias = config.get("attention_bias") or model_type == "qwen2"
    return Dims(
        hidden=Dim(config["hidden_size"], "H"),
        heads=Dim(heads, "A"),
        kv_heads=Dim(config.get("num_key_value_heads") or heads, "K"),
        head_size=Dim(config.get("head_dim") or config["hidden_size"] // heads, "D"),
        intermediate=Dim(config["intermediate_size"], "I"),
        vocabulary=Dim(config["vocab_size"], "V"),
        layers=config["num_hidden_layers"],
        activation=config.get("hidden_act", "silu"),
        attention_bias=bool(attention_bias),
        output_bias=bool(attention_bias) and model_type != "qwen2",
        mlp_bias=bool(config.get("mlp_bias")),
        qk_norm=model_type == "qwen3",
    )


def attention(t: Builder, x: Tensor, d: Dims, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    q = t.split_heads(t.linear("q_proj", x, d.heads * d.head_size, bias=d.attention_bias), d.heads, d.head_size)
    k = t.split_heads(t.linear("k_proj", x, d.kv_heads * d.head_size, bias=d.attention_bias), d.kv_heads, d.head_size)
    v = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=d.attention_bias), d.kv_heads, d.head_size)
    q, k = t.apply_rotary_pos_emb(q, k, cos, sin)
    k, v = t.cache_key_values(k, v)
    out = t.attention(q, k, v, mask=mask)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=d.output_bias)


def mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """The gated MLP: x [B, S, H] to [B, S, H]."""
    return t.linear(
        "down_proj",
        t.activation(d.activation, t.linear("gate_proj", x, d.intermediate, bias=d.mlp_bias))
        * t.linear("up_proj", x, d.intermediate, bias=d.mlp_bias),
        d.hidden,
        bias=d.mlp_bias,
    )


def decoder_layer(t: Builder, x: Tensor, d: Dims, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = t.rms_norm("input_layernorm", x, class_name="LlamaRMSNorm")
    x = t.call("self_attn", lambda t, h: attention(t, h, d, cos, sin, mask), x)
    x = residual + x
    residual = x
    x = t.rms_norm("post_attention_layernorm", x, class_name="LlamaRMSNorm")
    x = t.call("mlp", lambda t, h: mlp(t, h, d), x)
    return residual + x


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    inputs_embeds = t.input_embedding("embed_tokens", (t.batch, t.sequence), d.vocabulary, d.hidden)
    position_ids = t.position_ids(t.sequence)
    mask = t.causal_mask(inputs_embeds.dtype)
    x = inputs_embeds
    cos, sin = t.rotary_table(x.dtype, d.head_size, t.sequence)
    x = t.layers("layers", d.layers, lambda t, h, _: decoder_layer(t, h, d, cos, sin, mask), x)
    x = t.rms_norm("norm", x, class_name="LlamaRMSNorm")
    del position_ids, inputs_embeds
    return x


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""

    def body(t: Builder) -> Tensor:
        return model(t, config)

    if head.task is Task.CAUSAL_LM:
        return causal_lm(t, body, config, base="model", embedding="embed_tokens")
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        return sequence_classification(t, body, head, base="model")
    return token_classification(t, body, head, base="model")


FAMILY = Family(
    forward,
    "model",
    (Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION),
    walked=frozenset({"llama", "mistral"}),
)
