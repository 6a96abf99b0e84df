"""Mixtral, Qwen2-MoE and Qwen3-MoE: Llama-like attention, and experts instead of the MLP.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size (of one expert), E experts, C experts chosen per token, N tokens (B·S).

Source: transformers 5.23 models/{mixtral,qwen2_moe,qwen3_moe}/modeling_*.py.

Known limits:
    Without `output_router_logits`, its default: no load-balancing loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.decoder import (
    TEXT_TASKS,
    Dims,
    Position,
    decoder,
    dims,
    gated_mlp,
    split_normed_heads,
    with_head,
)
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.matmul import softmax
from memplan.step.moe import ExpertShapes, Routing, experts, gated, normalise, top_k
from memplan.step.tensor import Tensor

_CLASS_PREFIX = {"mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}


def rms_norm(t: Builder, name: str, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The norm class of a config's model type."""
    return t.rms_norm(name, x, class_name=f"{_CLASS_PREFIX[config['model_type']]}RMSNorm")


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """X [B, S, H] to [B, S, H]."""
    output_bias = bool(config.get("attention_bias"))
    bias = output_bias or bool(config.get("qkv_bias"))
    query = t.linear("q_proj", x, d.heads * d.head_size, bias=bias)
    if config["model_type"] == "qwen3_moe":
        query = split_normed_heads(t, query, d.heads, d.head_size, lambda h: rms_norm(t, "q_norm", h, config))
    else:
        query = t.split_heads(query, d.heads, d.head_size)
    key = t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias)
    if config["model_type"] == "qwen3_moe":
        key = split_normed_heads(t, key, d.kv_heads, d.head_size, lambda h: rms_norm(t, "k_norm", h, config))
    else:
        key = t.split_heads(key, d.kv_heads, d.head_size)
    value = t.split_heads(t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias), d.kv_heads, d.head_size)
    query, key = t.apply_rotary_pos_emb(query, key, at.cos, at.sin)
    key, value = t.cache_key_values(key, value, slides=at.slides)
    out = t.attention(query, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden, bias=output_bias)


def router(t: Builder, x: Tensor, config: Mapping[str, Any], count: int) -> Routing:
    """`...TopKRouter`: softmax over all experts in float32, the best C, their weights normalised: x [N, H]."""
    logits = t.matmul(t.view(x, x.shape), t.bare("weight", (count, x.shape[-1])), None)
    probabilities = softmax(t, logits, DType.FLOAT32)
    weights, indices = top_k(t, probabilities, config["num_experts_per_tok"])
    mixtral = config["model_type"] == "mixtral"
    if mixtral or config["norm_topk_prob"]:
        weights = normalise(t, weights)
    if not mixtral:
        weights = ops.to(t, weights, logits.dtype)
    return Routing(logits, weights, indices)


def sparse_moe_block(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any]) -> Tensor:
    """The experts, and in Qwen2-MoE a shared expert behind a gate: x [B, S, H] to [B, S, H]."""
    mixtral = config["model_type"] == "mixtral"
    count = config["num_local_experts"] if mixtral else config["num_experts"]
    shapes = ExpertShapes(count, d.hidden, d.intermediate if mixtral else config["moe_intermediate_size"])
    shape = x.shape
    if mixtral and config["router_jitter_noise"] > 0:
        x = ops.scale(t, x, "mul_")
    x = t.view(x, (shape[0] * shape[1], shape[2]))
    shared = None
    if config["model_type"] == "qwen2_moe":
        width = config["shared_expert_intermediate_size"]
        shared = t.call("shared_expert", lambda t, h: gated_mlp(t, h, d, width=width), x)
    routing = t.call("gate", lambda t, h: router(t, h, config, count), x)
    out = t.call("experts", lambda t, h: experts(t, h, routing, shapes, gated(d.activation)), x)
    if shared is not None:
        shared = t.activation("sigmoid", t.linear("shared_expert_gate", x, 1)) * shared
        out = out + shared
    return t.view(out, shape)


def is_sparse(config: Mapping[str, Any], index: int) -> bool:
    """Whether layer `index` has experts."""
    if config["model_type"] == "mixtral":
        return True
    chosen = index not in config["mlp_only_layers"] and config["num_experts"] > 0
    return bool(chosen and (index + 1) % config["decoder_sparse_step"] == 0)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = rms_norm(t, "input_layernorm", x, config)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = rms_norm(t, "post_attention_layernorm", x, config)
    if is_sparse(config, at.index):
        x = t.call("mlp", lambda t, h: sparse_moe_block(t, h, d, config), x)
    else:
        x = t.call("mlp", lambda t, h: gated_mlp(t, h, d), x)
    return residual + x


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t,
        config,
        lambda t, h, at: decoder_layer(t, h, d, config, at),
        lambda t, name, h: rms_norm(t, name, h, config),
        kind=lambda index: is_sparse(config, index),
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", TEXT_TASKS, walked=frozenset({"mixtral", "qwen2_moe", "qwen3_moe"}))
