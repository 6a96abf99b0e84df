"""Adaption prompts: attention of the queries, computed again, on keys and values of a trained prompt, behind a gate.

Symbols: B micro batch, S sequence length, N prompt length, A attention heads, K key/value heads, D head size, H hidden size.

Source: peft/tuners/adaption_prompt/{layer,utils}.py, AdaptedAttention and llama_compute_query_states (PEFT 0.21.2).

Known limits:
    Llama's attention, whose heads together are as wide as its hidden states, on weights that are not quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import adapter_parameter
from memplan.step.attention import AttentionOps, autocast_matmul
from memplan.step.matmul import merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.split import turned
from memplan.step.tensor import Tensor
from memplan.step.weight_ops import repeated

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """The attention module that the method wraps.

    Attributes:
        forward: the whole of it, x [B, S, H] to [B, S, H].
        q, k, v, o: its projections.
        cos, sin: of the rotary embedding, [1, S, D].
        heads, kv_heads, head_size: A, K and D.
    """

    forward: Projection
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    cos: Tensor
    sin: Tensor
    heads: int
    kv_heads: int
    head_size: int


def with_adaption_prompt(t: AttentionOps, x: Tensor, module: Attention) -> Tensor:
    """`module(x)`, and where the running module has a prompt, `o_proj(gate * softmax(query @ key.T) @ value)` added to it."""
    site = t.sites.get(t.path) if t.sites else None
    if site is None or site.adapter is None:
        return module.forward(x)
    prompt, gate = (adapter_parameter(t, t.path, site.adapter, name) for name in ("adaption_prompt", "adaption_gate"))
    output = module.forward(x)
    key, value = module.k(prompt), module.v(prompt)
    batch, length, heads = x.shape[0], x.shape[1], module.heads
    tokens, size = prompt.shape[1], module.head_size
    adapter_k, adapter_v = (
        turned(
            t, repeated(t, t.view(states, (1, tokens, module.kv_heads, size)), (batch, tokens, module.kv_heads, size))
        )
        for states in (key, value)
    )
    adapter_k = repeated(t, adapter_k, (batch, heads, tokens, size), "clone")
    adapter_v = repeated(t, adapter_v, (batch, heads, tokens, size), "clone")
    query = _query_states(t, x, module)
    dtype = query.dtype
    keys = ops.to(t, transpose_last(t, adapter_k), dtype)
    scores = ops.scale(t, autocast_matmul(t, query, keys, (batch, heads, length, tokens)), "div")
    del keys
    scores = gate * ops.to(t, softmax(t, scores, DType.FLOAT32), dtype)
    added = autocast_matmul(t, scores, adapter_v, (batch, heads, length, size))
    added = t.view(merge_heads(t, require_contiguous_gradient(t, added)), (batch, length, heads * size))
    added = module.o(added)
    output = output + added
    output = ops.to(t, output, dtype)
    del key, value, adapter_k, adapter_v, query, scores, added
    return output


def _query_states(t: AttentionOps, x: Tensor, module: Attention) -> Tensor:
    """`llama_compute_query_states`, which also makes values that nobody uses."""
    query = t.split_heads(module.q(x), module.heads, module.head_size)
    values = t.split_heads(module.v(x), module.kv_heads, module.head_size)
    rotated = t.rotary(query, module.cos, module.sin)
    del query, values
    return rotated
