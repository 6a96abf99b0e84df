"""Which kernel `F.scaled_dot_product_attention` runs on a CUDA device, and that kernel on fakes.

A fake trace has no CUDA dispatch stub, so PyTorch would always take the math path. The choice is re-implemented from
`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (select_sdp_backend) and the preparation of the operands from
`aten/src/ATen/native/transformers/attention.cpp` (PyTorch 2.13): the order is flash, efficient, math, and on sm90 and
sm100 with cuDNN newer than 9.15 cuDNN comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from memplan.errors import UnsupportedError
from memplan.trace.spec import AttentionBackend, GpuArch

_HALF = (torch.float16, torch.bfloat16)
_FLASH_MAX_HEAD_DIM = 256
_CUDNN_MAX_HEAD_DIM = 128
_aten = torch.ops.aten


class AttentionChooser:
    """Stands in for `torch.nn.functional.scaled_dot_product_attention`.

    Attributes:
        chosen: how often each backend was taken.
        efficient_supports_gqa: whether the memory-efficient kernel takes fewer key/value heads than query heads: not
            before PyTorch 2.14 (check_batch_size_and_num_heads_dense in can_use_mem_efficient_attention).
    """

    def __init__(self, arch: GpuArch, backend: AttentionBackend, *, cudnn_first: bool | None = None) -> None:
        self.arch = arch
        self.backend = backend
        major, minor = (int(part) for part in torch.__version__.split(".")[:2])
        self.efficient_supports_gqa = (major, minor) >= (2, 14)
        self.cudnn_first = arch.capability[0] in (9, 10) if cudnn_first is None else cudnn_first
        self.chosen: Counter[AttentionBackend] = Counter()
        # Entered around an op that runs decomposed; the recorder follows its in-place updates.
        self.decomposed: Callable[[], AbstractContextManager[None]] = nullcontext

    def choose(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        is_causal: bool,
    ) -> AttentionBackend:
        """The backend that CUDA's dispatcher would take for these operands [B, heads, S, D]."""
        if query.dim() != 4:
            return AttentionBackend.MATH
        order = [AttentionBackend.FLASH, AttentionBackend.EFFICIENT]
        if self.cudnn_first:
            order.insert(0, AttentionBackend.CUDNN)
        checks = {
            AttentionBackend.FLASH: self._flash_allowed,
            AttentionBackend.EFFICIENT: self._efficient_allowed,
            AttentionBackend.CUDNN: self._cudnn_allowed,
        }
        for backend in order:
            if checks[backend](query, key, value, mask, dropout, is_causal):
                return backend
        return AttentionBackend.MATH

    def _half_allowed(self, dtype: torch.dtype) -> bool:
        return dtype in _HALF if self.arch.capability[0] >= 8 else dtype == torch.float16

    def _flash_allowed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float, is_causal: bool
    ) -> bool:
        head_dim = query.shape[-1]
        if mask is not None or self.arch.capability < (8, 0) or not self._half_allowed(query.dtype):
            return False
        if not head_dim == key.shape[-1] == value.shape[-1] <= _FLASH_MAX_HEAD_DIM:
            return False
        needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        capability = self.arch.capability
        consumer = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
        if needs_grad and consumer and not (head_dim <= 192 or (dropout == 0.0 and head_dim > 224)):
            return False
        return not (is_causal and query.shape[-2] != key.shape[-2])

    def _efficient_allowed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float, is_causal: bool
    ) -> bool:
        if query.dtype not in (torch.float32, torch.float16) and not (
            query.dtype == torch.bfloat16 and self.arch.capability[0] >= 8
        ):
            return False
        if query.shape[1] != key.shape[1] and not self.efficient_supports_gqa:
            return False
        alignment = self._gemm_alignment(query.dtype)
        query_dim, key_dim, value_dim = (int(tensor.shape[-1]) for tensor in (query, key, value))
        return query_dim == key_dim and query_dim % alignment == 0 and value_dim % alignment == 0

    def _cudnn_allowed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float, is_causal: bool
    ) -> bool:
        if self.arch.capability < (8, 0) or not self._half_allowed(query.dtype) or (dropout * 16) % 1:
            return False
        dims = (query.shape[-1], value.shape[-1])
        return all(dim % 8 == 0 for dim in dims) and (max(dims) <= _CUDNN_MAX_HEAD_DIM or dims == (192, 128))

    def _gemm_alignment(self, dtype: torch.dtype) -> int:
        # sdp_utils.cpp, minimum_gemm_alignment.
        half = dtype in _HALF
        major = self.arch.capability[0]
        alignment = 4 if major >= 8 else 1
        if major >= 8 or (major >= 7 and half):
            alignment = max(alignment, 128 // (16 if half else 32))
        return alignment

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Attention on fakes by the kernel a GPU would run."""
        if torch.is_autocast_enabled("cuda"):
            # aten::scaled_dot_product_attention is on autocast's lower-precision list (autocast_mode.h).
            target = torch.get_autocast_dtype("cuda")
            query, key, value = (_autocast(tensor, target) for tensor in (query, key, value))
            attn_mask = _autocast(attn_mask, target) if attn_mask is not None else None
            # Autocast's wrapper takes itself out of the dispatch, so what the math path calls is not cast once more.
            with torch.autocast("cuda", enabled=False):
                return self._attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return self._attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> torch.Tensor:
        backend = self.backend
        if backend is AttentionBackend.AUTO:
            backend = self.choose(query, key, value, attn_mask, dropout_p, is_causal)
        self.chosen[backend] += 1
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = _additive(attn_mask, query.dtype)
        if backend is AttentionBackend.FLASH:
            return _flash(query, key, value, dropout_p, is_causal, scale)
        needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if backend is AttentionBackend.EFFICIENT:
            if attn_mask is not None:
                attn_mask = _aligned_mask(attn_mask, query, key)
            if query.shape[1] != key.shape[1]:
                raise UnsupportedError("the memory-efficient attention kernel does not support grouped-query attention")
            return _aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
            )[0]
        if backend is AttentionBackend.CUDNN:
            return _aten._scaled_dot_product_cudnn_attention(
                query, key, value, attn_mask, needs_grad, dropout_p, is_causal, False, scale=scale
            )[0]
        with self.decomposed():
            return _aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
            )[0]


def _autocast(tensor: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float64:
        return tensor.to(target)
    return tensor


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # attention.cpp, convert_boolean_attn_mask_: at::where(mask, 0.0, scalar_tensor(-inf)).
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device))


def _aligned_mask(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    # attention.cpp, preprocess_mask: padded to a multiple of 8 first (pad_bias always adds), expanded over heads after.
    aligned = not any(mask.stride(dim) % 8 for dim in range(mask.dim() - 1)) and mask.stride(-1) == 1
    if not aligned:
        last = mask.shape[-1]
        mask = torch.nn.functional.pad(mask, [0, 8 - last % 8])[..., :last]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    # attention.cpp pads the head dimension to a multiple of 8 for flash and slices the output back.
    head_dim = query.shape[-1]
    padding = -head_dim % 8
    if padding:
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (torch.nn.functional.pad(tensor, [0, padding]) for tensor in (query, key, value))
    out = _aten._scaled_dot_product_flash_attention(query, key, value, dropout, is_causal, False, scale=scale)[0]
    return out[..., :head_dim] if padding else out
