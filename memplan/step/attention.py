"""Attention blocks between their projections: heads, rotary embedding, masks, eager attention.

Symbols: B micro batch, S query length, T key length, A attention heads, K key/value heads, D head size.

Source: transformers 5.23 (masking_utils.py, cache_utils.py, integrations/sdpa_attention.py, models/llama).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import liger, ops
from memplan.step.attention_kernels import sdpa
from memplan.step.flash_attention import flash_attention
from memplan.step.layers import LayerOps
from memplan.step.matmul import expand_kv, matmul, merge_heads, require_contiguous_gradient, softmax, transpose_last
from memplan.step.tensor import Node, Shape, Tape, Tensor


class AttentionOps(LayerOps):
    """Everything between the projections of an attention block."""

    def split_heads(self, x: Tensor, heads: int, head_size: int) -> Tensor:
        """[B, S, A·D] viewed as [B, A, S, D]; the gradient must come back laid out by token, or it is copied."""
        shape = (x.shape[0], heads, x.shape[1], head_size)
        node = self.record("view", (x,), (), _split_heads_backward, (x.shape,))
        return Tensor(self, shape, x.dtype, x.storage, node, is_view=True, by_token=True)

    def rotary_table(self, dtype: DType, head_size: int, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding, [1, S, D] each, made once per forward without gradients."""
        outer, self.grad_enabled = self.grad_enabled, False
        table = _rotary_table(self, dtype, head_size, length)
        self.grad_enabled = outer
        return table

    def position_ids(self, length: int) -> Tensor:
        """`torch.arange(S) + past_seen_tokens`, int64 [S]."""
        if self.settings.packing:
            return Tensor(self, (1, length), DType.INT64, None)  # the batch holds them
        if self.cache is not None:
            return Tensor(self, (self.batch, length), DType.INT64, None)  # `generate` gives them
        arange = self.new((length,), DType.INT64, "arange")
        return ops.add_scalar(self, arange)

    def apply_rotary_pos_emb(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Both through `rotary`; the originals live until both are done."""
        if self.settings.liger_kernels:
            return liger.rope(self, q, k, cos, sin)
        return self.rotary(q, cos, sin), self.rotary(k, cos, sin)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x * cos + rotate_half(x) * sin` for x [B, A, S, D]."""
        return (x * cos) + (rotate_half(self, x) * sin)

    def cache_key_values(self, k: Tensor, v: Tensor, *, slides: bool = False) -> tuple[Tensor, Tensor]:
        """`past_key_values.update` on an empty cache: both are copied by `torch.cat` (cache_utils.py, `DynamicLayer`).

        Args:
            k: keys [B, K, S, D].
            v: values, likewise.
            slides: the layer's cache has a window, whose length it keeps on the device (`DynamicSlidingWindowLayer`).
        """
        if self.cache is not None:
            return self.cache.update(self, self.path, k, v, slides=slides)
        if self.prefix is not None:
            return self.prefix.update(self, k, v)
        if not self.settings.use_cache:
            return k, v
        if slides:
            self.outputs.append(self.new((), DType.INT64, "_to_copy"))
        k, v = _copy_by_cat(self, k, k.dtype), _copy_by_cat(self, v, ops.promote(k.dtype, v.dtype))
        self.outputs += (detached(k), detached(v))
        return k, v

    def causal_mask(self, dtype: DType, *, padding: bool = True) -> Tensor | None:
        """What `create_causal_mask` hands to every layer.

        None for sdpa without padding, a boolean [B, 1, S, S] for sdpa with padding, an additive mask for eager attention.

        Args:
            dtype: of an additive mask.
            padding: whether the padding of the batch is in this sequence; not in the decoder's of two sequences.
        """
        settings = self.settings
        padded = padding and settings.padding
        if settings.attn_implementation == "flash_attention_2":
            return flash_mask(self) if padded else None
        if settings.attn_implementation == "sdpa" and not padded and not settings.packing and self.prefix is None:
            return None  # the kernel is causal by itself; not where there are more keys than queries
        return _causal_mask(self, dtype, padded)

    def packed_texts(self) -> int:
        """How many texts share a packed row; 0 where rows are not packed."""
        if not self.settings.packing:
            return 0
        return max(-(-self.sequence // self.settings.packed_text_tokens), 2)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> Tensor:
        """Attention of q [B, A, S, D] on k, v [B, K, T, D], as [B, S, A, D].

        `causal` is the module's `is_causal`, by which sdpa goes where there is no mask.
        """
        if self.settings.attn_implementation == "eager":
            return eager_attention(self, q, k, v, mask, dropout)
        if self.settings.attn_implementation == "flash_attention_2":
            return flash_attention(
                self,
                q,
                k,
                v,
                target=self.settings.flash_dtype,
                mask=mask,
                texts=self.packed_texts(),
                limits=self.limits,
            )
        causal = causal and (self.cache is None or q.shape[2] > 1)
        return sdpa(self, q, k, v, mask, self.settings, dropout, causal=causal)


def flash_mask(t: AttentionOps) -> Tensor:
    """What flash attention takes the padding out by (`flash_attention_mask`): boolean [B, S], and whether all of it holds."""
    mask = t.new((t.batch, t.sequence), DType.BOOL, "_to_copy")
    t.alloc((), DType.BOOL, "all")
    return mask


def _split_heads_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    if not grad.by_token and grad.shape[1] != 1:  # a single head is laid out both ways
        grad = tape.new(shape, grad.dtype, "clone")
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


def _rotary_table(t: AttentionOps, dtype: DType, head_size: int, length: int) -> tuple[Tensor, Tensor]:
    rows = 1 if t.cache is None else t.batch
    positions = t.new((rows, length, 1), DType.FLOAT32, "_to_copy")
    freqs = t.new((rows, length, head_size // 2), DType.FLOAT32, "mul")
    del positions
    emb = t.new((rows, length, head_size), DType.FLOAT32, "cat")
    cos = ops.scale(t, t.new(emb.shape, DType.FLOAT32, "cos"))
    sin = ops.scale(t, t.new(emb.shape, DType.FLOAT32, "sin"))
    table = ops.to(t, cos, dtype), ops.to(t, sin, dtype)
    del freqs, emb, cos, sin
    return table


def _causal_mask(t: AttentionOps, dtype: DType, padded: bool) -> Tensor:
    length = t.sequence
    keys = length if t.cache is None else length + t.cache.length
    if t.prefix is not None:
        keys = length + t.prefix.tokens
    square = (1, 1, length, keys)
    texts = t.alloc((1, length), DType.INT64, "cumsum") if t.settings.packing else None
    positions = [t.alloc((length,), DType.INT64, "add") for _ in range(2)]
    block = same_text(t) if texts is not None else None
    allowed = t.new(square, DType.BOOL, "le")
    if block is not None:
        allowed = t.new(square, DType.BOOL, "bitwise_and")
    del texts, block
    if padded:
        both = t.new(square, DType.BOOL, "bitwise_and")
        del allowed
        allowed = t.new((t.batch, 1, length, keys), DType.BOOL, "bitwise_and")
        del both
    del positions
    if t.settings.attn_implementation == "eager":
        return t.new((t.batch, 1, length, keys), dtype, "where")
    # Expanded over the batch; what sdpa makes of it is as large as its shape says.
    return Tensor(t, (t.batch, 1, length, keys), DType.BOOL, allowed.storage, is_view=True)


def same_text(t: AttentionOps) -> Tensor:
    """Which tokens of a packed row belong to one text (masking_utils.py, `packed_sequence_mask_function`): [1, 1, S, S]."""
    square = (1, 1, t.sequence, t.sequence)
    rows, columns = (t.alloc((t.sequence,), DType.INT64, "index") for _ in range(2))
    same = t.new(square, DType.BOOL, "eq")
    del rows, columns
    both = t.new(square, DType.BOOL, "bitwise_and")
    del same
    return both


def _copy_by_cat(t: AttentionOps, x: Tensor, dtype: DType) -> Tensor:
    """`torch.cat([cache, x])`: the cache was made in the keys' element type, so values may be promoted to it."""
    node = t.record("cat", (x,), (), _copy_backward, (x.shape, x.dtype))
    storage = t.alloc(x.shape, dtype, "cat", Component.KV_CACHE)
    return Tensor(t, x.shape, dtype, storage, node)


def _copy_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    view = Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=grad.by_token)
    return (ops.fit_gradient(tape, view, shape, dtype),)


def detached(x: Tensor) -> Tensor:
    """`x` without its graph: what an output object keeps alive of it."""
    return Tensor(x.tape, x.shape, x.dtype, x.storage)


def rotate_half(t: AttentionOps, x: Tensor) -> Tensor:
    """`torch.cat((-x2, x1), dim=-1)`; each half's gradient is scattered into a full-size tensor of zeros."""
    first, second = _half(t, x), _half(t, x)
    return _concatenate(t, ops.neg(t, second), first, x.shape)


def _concatenate(t: AttentionOps, left: Tensor, right: Tensor, shape: Shape) -> Tensor:
    node = t.record("cat", (left, right), (), _cat_backward, (left.shape,))
    return t.new(shape, left.dtype, "cat", node)


def _half(t: AttentionOps, x: Tensor) -> Tensor:
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    node = t.record("slice", (x,), (), _slice_backward, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _slice_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "slice_backward"),)


def _cat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (part,) = cast(tuple[Shape], node.meta)
    return tuple(
        Tensor(tape, part, grad.dtype, grad.storage, None, is_view=True, by_token=grad.by_token)
        if edge is not None
        else None
        for edge in node.edges
    )


def eager_attention(t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`eager_attention_forward` of the Llama family: scores, softmax in float32, probabilities times values.

    q [B, A, S, D], k and v [B, K, T, D]; the result is [B, S, A, D].
    """
    (batch, heads, length, _), size = q.shape, v.shape[-1]
    key, value = expand_kv(t, k, heads), expand_kv(t, v, heads)
    scores = (batch, heads, length, k.shape[2])
    weights = ops.scale(t, autocast_matmul(t, q, transpose_last(t, key), scores))
    if mask is not None:
        weights = weights + mask
    weights = ops.to(t, softmax(t, weights, DType.FLOAT32), q.dtype)
    weights = ops.dropout(t, weights, dropout)
    t.layer_locals.append(detached(weights))  # `hidden_states, _ = self.self_attn(...)`
    out = require_contiguous_gradient(t, autocast_matmul(t, weights, value, (batch, heads, length, size)))
    return merge_heads(t, out)


def autocast_matmul(t: AttentionOps, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """`torch.matmul` under the step's autocast."""
    autocast = t.settings.autocast
    if autocast is not None:
        a, b = ops.to(t, a, autocast), ops.to(t, b, autocast)
    return matmul(t, a, b, shape)
