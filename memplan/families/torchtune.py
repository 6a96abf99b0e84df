"""torchtune's `TransformerDecoder` of Llama, Mistral, Qwen2, Gemma and Phi-3, with its head and the losses of its recipes.

Modules have the names that transformers gives them, so that targets of adapters mean the same under every stack.

Symbols: B micro batch, S sequence length, H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, V vocabulary, L layers, P positions of the rotary table.

Sources: torchtune 0.6.1 modules/{transformer,attention,feed_forward}.py, models/{llama3,llama3_1,llama3_2,mistral,qwen2,
gemma,phi3}/_component_builders.py, recipes/full_finetune_single_device.py (`_loss_step`).

Known limits:
    Not compiled, not packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Family, Head
from memplan.families.decoder import Dims, Norm, dims
from memplan.recipe import Loss, Task
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.builder import Builder, PerLayer
from memplan.step.chunked_loss import chunk_sizes, cross_entropy_of_chunks, output_of_chunk
from memplan.step.eager_attention import soft_cap
from memplan.step.loss import cross_entropy
from memplan.step.matmul import expand_kv
from memplan.step.norms import gemma_rms_norm
from memplan.step.site import Site
from memplan.step.split import split, turned, unflatten
from memplan.step.tensor import Tensor
from memplan.step.torchtune_ops import rms_norm, rotate_halves, rotate_halves_in_float, rotate_pairs
from memplan.step.torchtune_softcap import expand_heads, softcapped_attention
from memplan.torchtune.models import MODEL_TYPES, ComponentBuilder, component_builder

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


def attention(t: Builder, x: Tensor, d: Dims, builder: ComponentBuilder, *, slides: bool) -> Tensor:
    """`MultiHeadAttention`, or `Gemma2Attention` with or without a window: x [B, S, H] to [B, S, H]."""
    if t.declaring and t.settings.adapters and not builder.shares_rope_under_lora:
        _rotary_buffers(t, d, builder)
    bias = builder.name == "qwen2"
    rotate = _ROTATIONS[builder.rope]

    def heads(x: Tensor, count: int) -> Tensor:
        return unflatten(t, x, (*x.shape[:-1], count, d.head_size))

    if builder.name == "gemma2":
        return _gemma2_attention(t, x, d, slides=slides)
    q = t.linear("q_proj", x, d.heads * d.head_size, bias=bias)
    q = rotate(t, heads(q, d.heads))
    q = turned(t, q)
    k = t.linear("k_proj", x, d.kv_heads * d.head_size, bias=bias)
    v = t.linear("v_proj", x, d.kv_heads * d.head_size, bias=bias)
    k = rotate(t, heads(k, d.kv_heads))
    k, v = turned(t, k), turned(t, heads(v, d.kv_heads))
    if d.heads != d.kv_heads:
        k = expand_kv(t, k, d.heads)
        v = expand_kv(t, v, d.heads)
    out = t.attention(q, k, v, dropout=d.attention_dropout)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    return t.linear("o_proj", out, d.hidden)


def _gemma2_attention(t: Builder, x: Tensor, d: Dims, *, slides: bool) -> Tensor:
    def heads(x: Tensor, count: int) -> Tensor:
        return unflatten(t, x, (*x.shape[:-1], count, d.head_size))

    q = t.linear("q_proj", x, d.heads * d.head_size)
    q = rotate_pairs(t, heads(q, d.heads))
    q = turned(t, q)
    k = t.linear("k_proj", x, d.kv_heads * d.head_size)
    v = t.linear("v_proj", x, d.kv_heads * d.head_size)
    k = rotate_pairs(t, heads(k, d.kv_heads))
    k = expand_heads(t, k, d.heads)
    v = expand_heads(t, heads(v, d.kv_heads), d.heads)
    k, v = turned(t, k), turned(t, v)
    out = softcapped_attention(t, q, k, v, slides=slides)
    out = t.view(out, (*x.shape[:-1], d.heads * d.head_size))
    out = t.linear("o_proj", out, d.hidden)
    t.layer_locals.clear()
    return out


def feed_forward(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`FeedForward`: w2(silu(w1(x)) * w3(x))."""
    h = t.activation(d.activation, t.linear("gate_proj", x, d.intermediate))
    h = h * t.linear("up_proj", x, d.intermediate)
    h = t.linear("down_proj", h, d.hidden)
    return h  # noqa: RET504 - the product goes before the function returns


def decoder_layer(t: Builder, x: Tensor, d: Dims, builder: ComponentBuilder, *, slides: bool) -> Tensor:
    """`TransformerSelfAttentionLayer`: x [B, S, H] to [B, S, H]; Gemma 2 norms what its blocks return, too."""
    norm, scales = _norm(builder), builder.name == "gemma2"
    h = norm(t, "input_layernorm", x)
    attn_out = t.call("self_attn", lambda t, h: attention(t, h, d, builder, slides=slides), h)
    h = (norm(t, "post_attention_layernorm", attn_out) if scales else attn_out) + x
    before = "pre_feedforward_layernorm" if scales else "post_attention_layernorm"
    mlp_out = t.call("mlp", lambda t, h: feed_forward(t, h, d), norm(t, before, h))
    out = h + (norm(t, "post_feedforward_layernorm", mlp_out) if scales else mlp_out)
    return out  # noqa: RET504


def logits(t: Builder, config: Mapping[str, Any], builder: ComponentBuilder) -> list[Tensor]:
    """`TransformerDecoder.forward`: logits in chunks of the sequence, or all of them in float32."""
    d = dims(config)
    if t.declaring and not (t.settings.adapters and not builder.shares_rope_under_lora):
        _rotary_buffers(t, d, builder)
    window = builder.arguments.get("sliding_window_size")

    def slides(index: int) -> bool:
        return bool(window) and index % 2 == 0

    def of(index: int) -> Callable[[Builder, Tensor, int], Tensor]:
        slide = slides(index)
        return lambda t, h, _: decoder_layer(t, h, d, builder, slides=slide)

    x = t.layers("model.layers", d.layers, PerLayer(of), _embedded(t, d, builder), kind=slides)
    return _unembed(t, x, d, builder)


def _embedded(t: Builder, d: Dims, builder: ComponentBuilder) -> Tensor:
    """The input embedding; `GemmaNormEmbeddings` multiplies it by a scalar on the host."""
    x = t.input_embedding(_EMBEDDING, (t.batch, t.sequence), d.vocabulary, d.hidden)
    return ops.scale(t, x) if builder.is_gemma else x


def _norm(builder: ComponentBuilder) -> Norm:
    """The class of a model's norms."""
    if builder.is_gemma:
        return lambda t, name, x: gemma_rms_norm(t, name, x, class_name="GemmaRMSNorm")
    return rms_norm


def _unembed(t: Builder, x: Tensor, d: Dims, builder: ComponentBuilder) -> list[Tensor]:
    h = _norm(builder)(t, "model.norm", x)
    if builder.name == "gemma2":  # its `Gemma2FinalNorm` caps hidden states, not logits
        given = [h]
        del h
        h = soft_cap(t, given.pop())
    tied_to = _EMBEDDING if builder.tied else None
    with t.component(Component.LOGITS_AND_LOSS):
        if t.declaring or t.settings.loss != Loss.CHUNKED:
            return [ops.to(t, t.output_embedding(_HEAD, h, d.vocabulary, tied_to=tied_to), DType.FLOAT32)]
        if tied_to is not None:
            t.tie(f"{_HEAD}.weight", f"{tied_to}.weight")
        outer, t.module = t.module, _HEAD
        found = [_output(t, chunk, d) for chunk in split(t, h, chunk_sizes(h.shape[1]), dim=1)]
        t.module = outer
        return found


def _output(t: Builder, chunk: Tensor, d: Dims) -> Tensor:
    """The head on a chunk [B, C, H], with its adapter if it has one."""
    weight = t.parameter(_HEAD, "weight", (d.vocabulary, d.hidden))
    site = t.sites.get(_HEAD) if t.sites else None
    if site is None or site.adapter is None:
        return output_of_chunk(t, chunk, weight)
    out: Tensor = site.adapter.rewrite(_ChunkedLayer(t, site, weight, chunk), chunk)
    return out


class _ChunkedLayer(AdaptedLayer):
    """The head with an adapter, on a chunk whose rows are not adjacent in memory."""

    def __init__(self, t: Builder, site: Site, weight: Tensor, chunk: Tensor) -> None:
        super().__init__(t, _HEAD, site, weight, None, lambda x: output_of_chunk(t, x, weight))
        self.on: Callable[[Tensor, Tensor], Tensor] = lambda x, factor: output_of_chunk(t, x, factor)
        self.chunk = chunk

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The adapter's `nn.Linear` called `name`."""
        return self.on(x, self[name]) if x is self.chunk else super().linear(x, name)


def _rotary_buffers(t: Builder, d: Dims, builder: ComponentBuilder) -> None:
    """The frequencies and the table of P positions of one rotary embedding."""
    half, positions = d.head_size // 2, int(builder.arguments["max_seq_len"])
    t.buffer("pos_embeddings.theta", (half,))
    t.buffer("pos_embeddings.cache", (positions, half, 2) if builder.rope == "pairs" else (positions, 2 * d.head_size))


_ROTATIONS = {"pairs": rotate_pairs, "halves": rotate_halves, "float32 halves": rotate_halves_in_float}


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """`_loss_step` of a recipe: the model, then labels shifted by one and the loss; returns the loss."""
    builder = component_builder(config)
    found = logits(t, config, builder)
    if t.declaring:
        return found[0]
    with t.component(Component.LOGITS_AND_LOSS):
        # `torch.hstack((labels[..., 1:], ignored))`, which takes the name of the batch's labels.
        shifted = t.new((t.batch, t.sequence), DType.INT64, "cat")
        t.labels = None
        if t.settings.loss == Loss.CHUNKED:
            return cross_entropy_of_chunks(t, found, shifted)
        (all_logits,) = found
        flat = t.view(all_logits, (t.batch * t.sequence, all_logits.shape[-1]))
        return cross_entropy(t, flat, shifted)


FAMILY = Family(
    forward,
    "model",
    (Task.CAUSAL_LM,),
    walked=MODEL_TYPES,
    walked_tasks=frozenset({Task.CAUSAL_LM}),
    registered_children={
        "layers.*": (
            "self_attn",
            "mlp",
            "input_layernorm",
            "pre_feedforward_layernorm",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
        ),
        "mlp": ("gate_proj", "down_proj", "up_proj"),
    },
)
