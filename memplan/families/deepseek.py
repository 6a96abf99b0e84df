"""DeepSeek-V2 and -V3: multi-head latent attention, shared and routed experts after the first dense layers.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, I intermediate size (of one expert), E experts,
C experts chosen per token, G groups of experts, N tokens (B·S); of a head: P elements without and R with rotation, V of the
value.

Source: transformers 5.23 models/deepseek_v2/modeling_deepseek_v2.py, models/deepseek_v3/modeling_deepseek_v3.py.

Known limits:
    The extra layer for multi-token prediction is not part of the library's model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    rotary_buffers,
    rotary_embedding,
    with_head,
)
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.latent_attention import (
    complex_table,
    expand_heads,
    rotate_complex,
    rotate_interleaved,
    write_parts,
)
from memplan.step.matmul import softmax
from memplan.step.moe import ExpertShapes, Routing, experts, gated, gather, normalise, sum_last, top_k
from memplan.step.split import concatenate, split
from memplan.step.tensor import Tensor


def rms_norm(t: Builder, name: str, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The norm class of a config's model type."""
    return t.rms_norm(name, x, class_name="DeepseekV2RMSNorm" if _is_v2(config) else "DeepseekV3RMSNorm")


def _is_v2(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "deepseek_v2")


def rotate(t: Builder, x: Tensor, config: Mapping[str, Any], at: Position) -> Tensor:
    """The rotated part of the heads, x [B, A, S, R]."""
    if _is_v2(config):
        return rotate_complex(t, x, at.cos)
    if config["rope_interleave"]:
        return rotate_interleaved(t, x, at.cos, at.sin)
    return t.rotary(x, at.cos, at.sin)


def attention(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """Multi-head latent attention: x [B, S, H] to [B, S, H]."""
    plain, rotated, value_size = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    latent, bias = config["kv_lora_rank"], config["attention_bias"]
    batch, length = x.shape[:2]
    if config["q_lora_rank"] is None:
        query = t.linear("q_proj", x, d.heads * (plain + rotated))
    else:
        query = rms_norm(t, "q_a_layernorm", t.linear("q_a_proj", x, config["q_lora_rank"], bias=bias), config)
        query = t.linear("q_b_proj", query, d.heads * (plain + rotated))
    query = t.split_heads(query, d.heads, plain + rotated)
    query_plain, query_rotated = split(t, query, (plain, rotated))

    compressed = t.linear("kv_a_proj_with_mqa", x, latent + rotated, bias=bias)
    kv, key_rotated = split(t, compressed, (latent, rotated))
    kv = t.view(rms_norm(t, "kv_a_layernorm", kv, config), (batch, 1, length, latent))
    key_rotated = t.view(key_rotated, (batch, 1, length, rotated))
    query_rotated, key_rotated = rotate(t, query_rotated, config, at), rotate(t, key_rotated, config, at)
    kv, key_rotated = t.cache_key_values(kv, key_rotated)
    query_states = concatenate(t, (query_plain, query_rotated), query.shape)
    key, value = _expand_kv(t, kv, key_rotated, d, config)

    out = t.attention(query_states, key, value, mask=at.mask, dropout=d.attention_dropout)
    out = t.view(out, (batch, length, d.heads * value_size))
    return t.linear("o_proj", out, d.hidden, bias=bias)


def _expand_kv(
    t: Builder, kv: Tensor, key_rotated: Tensor, d: Dims, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    plain, value_size = config["qk_nope_head_dim"], config["v_head_dim"]
    expanded = t.linear("kv_b_proj", kv, d.heads * (plain + value_size))
    expanded = t.split_heads(
        t.view(expanded, (kv.shape[0], kv.shape[2], expanded.shape[-1])), d.heads, plain + value_size
    )
    key_plain, value = split(t, expanded, (plain, value_size))
    return write_parts(t, (key_plain, expand_heads(t, key_rotated, d.heads))), value


def router_v2(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Routing:
    """`DeepseekV2TopkRouter`: softmax in float32; with groups, only the best groups keep their scores: x [N, H]."""
    logits = _router_logits(t, x, config["n_routed_experts"])
    scores = softmax(t, logits, DType.FLOAT32)
    if config["topk_method"] == "group_limited_greedy":
        groups = t.new((x.shape[0], config["n_group"]), DType.FLOAT32, "max")
        mask = _group_mask(t, groups, config)
        scores = ops.unary(t, "masked_fill", scores, save="none")
        del mask
    weights, indices = top_k(t, scores, config["num_experts_per_tok"])
    return Routing(logits, ops.scale(t, weights), indices)


def router_v3(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Routing:
    """`DeepseekV3TopkRouter`: sigmoid scores, chosen with a correction bias among the best groups: x [N, H]."""
    count = config["n_routed_experts"]
    logits = _router_logits(t, x, count)
    scores = t.activation("sigmoid", logits)
    t.buffer("e_score_correction_bias", (count,), DType.FLOAT32, persistent=True)
    choice = scores + Tensor(t, (count,), DType.FLOAT32, None)
    best, _ = top_k(t, t.view(choice, (x.shape[0], config["n_group"], count // config["n_group"])), 2)
    groups = sum_last(t, best, keepdim=False)
    mask = _group_mask(t, groups, config)
    choice = ops.unary(t, "masked_fill", choice, save="none")
    _, indices = top_k(t, choice, config["num_experts_per_tok"])
    weights = gather(t, scores, indices)
    if config["norm_topk_prob"]:
        weights = normalise(t, weights, epsilon=True)
    del mask
    return Routing(logits, ops.scale(t, weights), indices)


def _router_logits(t: Builder, x: Tensor, count: int) -> Tensor:
    weight = t.bare("weight", (count, x.shape[-1]))
    return t.matmul(ops.to(t, x, DType.FLOAT32), ops.to(t, weight, DType.FLOAT32), None)


def _group_mask(t: Builder, groups: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Zeros with ones scattered at the best groups, spread over the experts: [N, E]."""
    group_mask = t.new(groups.shape, groups.dtype, "zeros_like")
    return t.new((groups.shape[0], config["n_routed_experts"]), group_mask.dtype, "clone")


def moe(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any]) -> Tensor:
    """Routed experts plus the shared ones, which are one wide MLP: x [B, S, H] to [B, S, H]."""
    width = config["moe_intermediate_size"]
    shapes = ExpertShapes(config["n_routed_experts"], d.hidden, width)
    router = router_v2 if _is_v2(config) else router_v3
    flat = (x.shape[0] * x.shape[1], x.shape[2])
    # The router's view is its own: the gradient of the experts' goes down before the router has one.
    routing = t.call("gate", lambda t, h: router(t, t.view(h, flat), config), x)
    tokens = t.view(x, flat)
    out = t.call("experts", lambda t, h: experts(t, h, routing, shapes, gated(d.activation)), tokens)
    out = t.view(out, x.shape)
    shared_width = width * config["n_shared_experts"]
    bias = bool(config.get("mlp_bias"))
    return out + t.call("shared_experts", lambda t, h: gated_mlp(t, h, d, width=shared_width, bias=bias), x)


def decoder_layer(t: Builder, x: Tensor, d: Dims, config: Mapping[str, Any], at: Position) -> Tensor:
    """One layer: x [B, S, H] to [B, S, H]."""
    residual = x
    x = rms_norm(t, "input_layernorm", x, config)
    x = t.call("self_attn", lambda t, h: attention(t, h, d, config, at), x)
    x = residual + x
    residual = x
    x = rms_norm(t, "post_attention_layernorm", x, config)
    if at.index >= config["first_k_dense_replace"]:
        x = t.call("mlp", lambda t, h: moe(t, h, d, config), x)
    else:
        x = t.call("mlp", lambda t, h: gated_mlp(t, h, d, bias=bool(config.get("mlp_bias"))), x)
    return residual + x


def _tables(t: Builder, dtype: DType, config: Mapping[str, Any]) -> Sequence[tuple[Tensor, Tensor]]:
    size = config["head_dim"]
    if not _is_v2(config):
        return [rotary_embedding(t, dtype, size)] * config["num_hidden_layers"]

    def forward(t: Builder) -> Tensor:
        rotary_buffers(t, size)
        return complex_table(t, size)

    table = t.call("rotary_emb", forward)
    return [(table, table)] * config["num_hidden_layers"]


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """The decoder without a head: [B, S, H]."""
    d = dims(config)
    return decoder(
        t,
        config,
        lambda t, h, at: decoder_layer(t, h, d, config, at),
        lambda t, name, h: rms_norm(t, name, h, config),
        tables=lambda t, dtype: _tables(t, dtype, config),
        kind=lambda index: index >= config["first_k_dense_replace"],
    )


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The decoder under its head; returns the loss."""
    return with_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(
    forward,
    "model",
    TEXT_TASKS,
    walked=frozenset({"deepseek_v2", "deepseek_v3"}),
    missing={"deepseek_v2": frozenset({Task.TOKEN_CLASSIFICATION})},
)
