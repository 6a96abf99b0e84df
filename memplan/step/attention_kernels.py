"""`F.scaled_dot_product_attention` on CUDA: which kernel runs, what it saves and what it allocates inside.

Symbols: B micro batch, A attention heads, K key/value heads, S query length, T key length, D head size.

Sources, torch 2.13: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (choice), attention.cpp (padding, mask, math path),
cuda/attention.cu, cuda/flash_attn/flash_api.cpp, cuda/attention_backward.cu.

Known limits:
    The memory-efficient kernel takes no grouped heads before torch 2.14. cuDNN is taken first on sm90 and sm100, as with
    cuDNN 9.15 and newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.matmul import (
    dense,
    expand_kv,
    matmul,
    merge_heads,
    repeat_kv,
    require_contiguous_gradient,
    softmax_backward,
    transpose_last,
)
from memplan.step.settings import StepSettings
from memplan.step.tensor import Node, Shape, Tape, Tensor

# sdp_utils.cpp, can_use_mem_efficient_attention: `check_batch_size_and_num_heads_dense<supports_gqa>`.
EFFICIENT_TAKES_GROUPED_HEADS = (2, 14)


class Kernel(StrEnum):
    """What runs behind `F.scaled_dot_product_attention`."""

    FLASH = "flash"
    EFFICIENT = "efficient"
    CUDNN = "cudnn"
    MATH = "math"


@dataclass(frozen=True, slots=True)
class Meta:
    """What backward needs to know of an input that is not kept: shape, element type, memory layout."""

    shape: Shape
    dtype: DType
    by_token: bool


def meta(x: Tensor) -> Meta:
    """The `Meta` of a tensor."""
    return Meta(x.shape, x.dtype, x.by_token)


def choose_kernel(
    dtype: DType,
    head_size: int,
    *,
    has_mask: bool,
    grouped: bool,
    compute_capability: tuple[int, int],
    torch_version: tuple[int, int],
    value_size: int | None = None,
    dropout: float = 0.0,
) -> Kernel:
    """The kernel that CUDA's dispatcher takes.

    Args:
        dtype: of q, k and v.
        head_size: D.
        has_mask: an explicit mask is given.
        grouped: k and v have fewer heads than q (`enable_gqa`).
        compute_capability: (major, minor).
        torch_version: (major, minor); the memory-efficient kernel takes grouped heads since 2.14.
        value_size: head size of v where it is another one; flash wants them equal (`check_head_dim_size_flash`).
        dropout: its probability; cuDNN takes sixteenths (`check_cudnn_tensor_shapes`).
    """
    half = dtype.is_half if compute_capability >= (8, 0) else dtype is DType.FLOAT16
    known_to_cudnn = head_size % 8 == 0 and head_size <= 128 and not dropout * 16 % 1
    if compute_capability[0] in (9, 10) and half and known_to_cudnn:
        return Kernel.CUDNN
    consumer = (8, 6) <= compute_capability <= (8, 9) or (12, 0) <= compute_capability <= (12, 1)
    equal = value_size in (None, head_size)
    known_to_flash = head_size <= 256 and (not consumer or head_size <= 192 or (head_size > 224 and not dropout))
    if half and equal and not has_mask and compute_capability >= (8, 0) and known_to_flash:
        return Kernel.FLASH
    alignment = 8 if dtype.is_half else 4
    known = half or dtype is DType.FLOAT32
    heads_allowed = not grouped or torch_version >= EFFICIENT_TAKES_GROUPED_HEADS
    return Kernel.EFFICIENT if known and heads_allowed and head_size % alignment == 0 else Kernel.MATH


def sdpa(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    settings: StepSettings,
    dropout: float = 0.0,
    *,
    causal: bool = True,
) -> Tensor:
    """Attention of q [B, A, S, D] on k, v [B, K, T, D] as transformers calls it: [B, S, A, D].

    Grouped heads are passed on (`enable_gqa`) only without a mask; with one, k and v are repeated first
    (integrations/sdpa_attention.py, `use_gqa_in_sdpa`). Autocast casts what the kernel is given.

    Args:
        t: the tape.
        q: queries.
        k: keys.
        v: values.
        mask: boolean, or added to the scores.
        settings: GPU and version, which decide the kernel.
        dropout: its probability.
        causal: whether a missing mask means the causal one, which only the unfused kernel makes.
    """
    heads = q.shape[1]
    if k.shape[1] != heads and (mask is not None or k.shape[-1] > 256):
        k, v = expand_kv(t, k, heads), expand_kv(t, v, heads)
    return _by_token(t, q, *dispatched(t, q, k, v, mask, settings, dropout, causal))


def plain_sdpa(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, settings: StepSettings, dropout: float = 0.0
) -> Tensor:
    """`F.scaled_dot_product_attention` without `enable_gqa`: [B, S, A, D].

    Of fewer key heads that broadcast it takes one for all, in cuDNN's kernel or in the unfused one.
    """
    if k.shape[1] != q.shape[1]:
        settings = replace(settings, torch_version=min(settings.torch_version, (2, 13)))
    return _by_token(t, q, *dispatched(t, q, k, v, mask, settings, dropout, causal=False, broadcasts=True))


def _by_token(t: Tape, q: Tensor, kernel: Kernel, out: Tensor) -> Tensor:
    """A kernel's result, as it lays it out, as [B, S, A, D]."""
    if kernel is Kernel.MATH:
        return merge_heads(t, out)
    if kernel in (Kernel.FLASH, Kernel.CUDNN) and not q.by_token:
        # The kernel lays its result out as the query is; `transpose(1, 2).contiguous()` then copies it.
        return dense(t, out)
    return out


def dispatched(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    settings: StepSettings,
    dropout: float,
    causal: bool,
    *,
    broadcasts: bool = False,
) -> tuple[Kernel, Tensor]:
    """`F.scaled_dot_product_attention`: the kernel, and its result as it lays it out."""
    autocast = settings.autocast
    if autocast is not None:
        q, k, v = ops.to(t, q, autocast), ops.to(t, k, autocast), ops.to(t, v, autocast)
    kernel = choose_kernel(
        q.dtype,
        q.shape[-1],
        has_mask=mask is not None,
        grouped=k.shape[1] != q.shape[1],
        compute_capability=settings.compute_capability,
        torch_version=settings.torch_version,
        value_size=v.shape[-1],
        dropout=dropout,
    )
    if mask is not None:
        mask = _additive(t, mask, q.dtype)
    if kernel is Kernel.MATH:
        return kernel, _math(t, q, k, v, mask, dropout, causal=causal, broadcasts=broadcasts)
    if kernel is Kernel.EFFICIENT and mask is not None:
        mask = _aligned_mask(t, mask, q, k)
    return kernel, _fused(t, kernel, q, k, v, mask)


def math_sdpa(t: Tape, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The unfused kernel, where key heads are broadcast without `enable_gqa`: [B, S, A, D]."""
    if mask is not None:
        mask = _additive(t, mask, q.dtype)
    return merge_heads(t, _math(t, q, k, v, mask, dropout, causal=mask is None))


def keeps_logsumexp(t: Tape, *inputs: Tensor) -> bool:
    """Whether the memory-efficient kernel and cuDNN's make the logarithm of the sums, which only backward needs."""
    return t.grad_enabled and any(x.requires_grad for x in inputs)


def _fused(t: Tape, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, length, _ = q.shape
    name = f"_scaled_dot_product_{kernel}_attention"
    shape = (batch, length, heads, v.shape[-1])
    out = t.alloc(shape, q.dtype, name)
    rows = -(-length // 32) * 32 if kernel is Kernel.EFFICIENT else length
    kept = kernel is Kernel.FLASH or keeps_logsumexp(t, q, k, v)
    lse = t.alloc((batch, heads, rows), DType.FLOAT32, name) if kept else None
    random_state = [t.alloc((2,), DType.INT64, name), t.alloc((1,), DType.INT64, name)]  # philox seed and offset
    saved = (q, k, v, mask, out, lse, *random_state)
    node = t.record("sdpa", (q, k, v), saved, _fused_backward, (meta(q), meta(k), meta(v), kernel))
    return Tensor(t, shape, q.dtype, out, node)


def _fused_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    q, k, v, kernel = cast(tuple[Meta, Meta, Meta, Kernel], node.meta)
    kept = node.all_stored()
    name = f"_scaled_dot_product_{kernel}_attention_backward"
    grads = [tape.new(m.shape, m.dtype, name, by_token=m.by_token) for m in (q, k, v)]
    temporaries = [tape.alloc((size,), DType.UINT8, name) for size in backward_workspaces(kernel, q, k)]
    del temporaries, kept
    return tuple(g if edge is not None else None for g, edge in zip(grads, node.edges, strict=True))


def backward_workspaces(kernel: Kernel, q: Meta, k: Meta) -> list[int]:
    """Bytes that the kernel's backward allocates inside and frees again.

    Flash (flash_api.cpp, `mha_bwd`): softmax_d and dq_accum in float32 over lengths rounded up to 128 and head sizes rounded
    up to 32 (64 above 128); with grouped heads dk and dv expanded to all heads. Memory-efficient
    (attention_backward.cu): delta in float32 over the length rounded up to 32; in half precision also the query gradient's
    accumulator, a 64 × 64 tile in float32 and its counters for each block of 64 rows and 64 columns (kernel_backward.h,
    `workspace_size`).
    """
    batch, heads, length, size = q.shape
    if kernel is Kernel.EFFICIENT:
        tiles = batch * heads * -(-length // 64) * -(-size // 64)
        accumulator = [tiles * (64 * 64 * 4 + 16)] if q.dtype.is_half else []
        return [batch * heads * -(-length // 32) * 32 * 4, *accumulator]
    if kernel is Kernel.CUDNN:
        return []
    rows = -(-length // 128) * 128
    multiple = 32 if size <= 128 else 64
    sizes = [batch * heads * rows * 4, batch * heads * rows * -(-size // multiple) * multiple * 4]
    if k.shape[1] != heads:
        sizes += [batch * k.shape[2] * heads * size * q.dtype.itemsize_bytes] * 2
    return sizes


def _additive(t: Tape, mask: Tensor, dtype: DType) -> Tensor:
    """attention.cpp, `convert_boolean_attn_mask_`: `where(mask, 0.0, scalar_tensor(-inf))`."""
    if mask.dtype is not DType.BOOL:
        return mask
    scalars = [t.alloc((), dtype, "scalar_tensor") for _ in range(2)]
    additive = t.new(mask.shape, dtype, "where")
    del scalars
    return additive


def _aligned_mask(t: Tape, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """attention.cpp, `preprocess_mask`: rows are padded to a multiple of 8 elements, then spread over the heads as a view."""
    last = k.shape[2]
    if last % 8 == 0:
        return mask
    return t.new((*mask.shape[:3], last + 8 - last % 8), mask.dtype, "constant_pad_nd")


def _math(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    *,
    causal: bool,
    broadcasts: bool = False,
) -> Tensor:
    """attention.cpp, `_scaled_dot_product_attention_math`: half precision is computed in float32; result [B, A, S, D]."""
    origin, (batch, heads, length, _), size = q.dtype, q.shape, v.shape[-1]
    q_, k_, v_ = (ops.to(t, x, DType.FLOAT32 if origin.is_half else origin) for x in (q, k, v))
    query = ops.scale(t, q_)
    if mask is None and causal:
        mask = _causal_bias(t, length, k_.shape[2], q_.dtype)
    # Without `enable_gqa` it is the product that spreads one head over all.
    key, value = (k_, v_) if broadcasts else (repeat_kv(t, k_, heads), repeat_kv(t, v_, heads))
    scores = (batch, heads, length, k_.shape[2])
    scaled = expand_kv(t, ops.scale(t, transpose_last(t, key)), heads)
    weights = matmul(t, query, scaled, scores)
    del scaled
    if mask is not None:
        weights = ops.add_in_place(t, weights, mask)
    weights = _safe_softmax(t, weights)
    weights = ops.dropout(t, weights, dropout)
    lowered = t.alloc(scores, origin, "_to_copy") if origin.is_half else None
    value = expand_kv(t, value, heads)
    out = require_contiguous_gradient(t, matmul(t, weights, value, (batch, heads, length, size)))
    out = ops.to(t, out, origin)
    del mask, lowered
    return out


def _causal_bias(t: Tape, rows: int, columns: int, dtype: DType) -> Tensor:
    ones = t.alloc((rows, columns), DType.BOOL, "ones")
    lower = t.alloc((rows, columns), DType.BOOL, "tril")
    del ones
    bias = t.new((rows, columns), dtype, "where")
    del lower
    return bias


def _safe_softmax(t: Tape, x: Tensor) -> Tensor:
    """attention.cpp, `_safe_softmax`: softmax; rows that are -inf throughout are filled with zero in place."""
    out = t.alloc(x.shape, x.dtype, "_safe_softmax")
    masked = t.alloc(x.shape, DType.BOOL, "isneginf")
    rows = t.alloc((*x.shape[:-1], 1), DType.BOOL, "all")
    zero = t.alloc((), x.dtype, "scalar_tensor")
    node = t.record("_safe_softmax", (x,), (out,), softmax_backward, (x.shape, x.dtype))
    del zero, rows, masked
    return Tensor(t, x.shape, x.dtype, out, node)
