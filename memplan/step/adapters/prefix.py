"""Key/values before the sequence of every layer: prefix tuning.

Symbols: B micro batch, S sequence length, N virtual tokens, L layers, K key/value heads, D head size.

Source: peft/peft_model.py, PeftModelForCausalLM.forward and PeftModel.get_prompt; peft/tuners/prefix_tuning/model.py (PEFT
0.21.2); transformers 5.23 cache_utils.py (`DynamicCache(ddp_cache_data)`).

Known limits:
    Decoders that take a plain `DynamicCache`, without checkpointing (PEFT refuses it) and with every layer executed by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.adapters.prompts import parameter, through_layers
from memplan.step.builder import Builder
from memplan.step.layers import lookup
from memplan.step.site import PromptSite
from memplan.step.split import concatenate, copy, narrow, permuted, split
from memplan.step.tensor import Shape, Tape, Tensor


@dataclass
class Prefix:
    """Keys and values that stand in every layer's cache before the sequence.

    Attributes:
        tokens: N.
        waiting: (keys, values) [B, K, N, D] of the layers that have not run, in their order.
        held: what the cache holds until the outermost forward returns.
    """

    tokens: int
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    held: list[Tensor] = field(default_factory=list)

    def update(self, t: Tape, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The running layer's keys and values [B, K, S, D] behind its prefix: [B, K, N + S, D]."""
        keys, values = self.waiting.pop(0)
        k = _behind(t, keys, k)
        del keys
        v = _behind(t, values, v)
        del values
        self.held += (Tensor(t, k.shape, k.dtype, k.storage), Tensor(t, v.shape, v.dtype, v.storage))
        return k, v


def prefixed(t: Builder, site: PromptSite, forward: Callable[[Builder], Tensor]) -> Tensor:
    """The base model's forward with a cache that holds the prefix; PEFT's variables live until it returns."""
    assert site.key_values is not None
    held: list[object] = []
    if t.settings.padding:
        held.append(t.alloc((t.batch, site.tokens), DType.FLOAT32, "_to_copy"))
        held.append(t.alloc((t.batch, t.tokens + site.tokens), DType.FLOAT32, "cat"))
    t.prefix = Prefix(site.tokens, _cached(t, site))
    try:
        return forward(t)
    finally:
        # torchtune's loss takes nothing but the hidden states out of the model.
        if t.settings.use_cache or (site.returns_cache and t.settings.loss != "chunked"):
            t.outputs += t.prefix.held
        t.prefix = None


def prefix_tuning(t: Builder, site: PromptSite) -> Tensor:
    """The rows of an embedding, [B, N, 2 L K D]; with a projection through two linear layers."""
    indices = t.new((t.batch, site.tokens), DType.INT64, "_to_copy")
    x = lookup(t, parameter(t, site, "embedding.weight"), indices, (t.batch, site.tokens))
    if len(site.tensors) == 1:
        return x
    return through_layers(t, site, x, "transform", (0, 2), "tanh")


def _cached(t: Builder, site: PromptSite) -> list[tuple[Tensor, Tensor]]:
    """`get_prompt`: the encoder's result in the model's type, copied into a cache layer by layer."""
    assert site.key_values is not None
    layers, heads, size = site.key_values
    x = ops.to(t, site.encode(t, site), site.dtype)
    shape = (2 * layers, t.batch, heads, site.tokens, size)
    whole = permuted(t, x, shape)
    layer = (2, *shape[1:])
    parts = split(t, whole, [2] * layers, dim=0)
    found = []
    for part in parts:
        k, v = split(t, narrow(t, part, layer), [1, 1], dim=0)  # `layer[:2]`, taken apart by iterating over it
        found.append((_cached_part(t, k, shape[1:]), _cached_part(t, v, shape[1:])))
    return found


def _cached_part(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """`torch.cat([empty cache, x])`."""
    return copy(t, x, shape, "cat", Component.KV_CACHE)


def _behind(t: Tape, first: Tensor, then: Tensor) -> Tensor:
    shape = (*first.shape[:2], then.shape[2] + first.shape[2], first.shape[3])
    return concatenate(t, (first, then), shape, Component.KV_CACHE)
