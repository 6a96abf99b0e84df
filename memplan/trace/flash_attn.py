"""What the flash-attn package would do, with PyTorch's own op for the same kernel: saved tensors and sizes are the same.

`FlashAttnFunc` and `FlashAttnVarlenFunc` of flash_attn/flash_attn_interface.py (2.8) save q, k, v, out, the row sums
(float32 [batch, heads, sequence]) and a random state, and so does `aten::_flash_attention_forward`.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """Attention over [batch, sequence, heads, head_dim]."""
    return _attention(q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, causal, softmax_scale)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over [tokens, heads, head_dim], sequences delimited by `cu_seqlens`."""
    return _attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), dropout_p, causal, softmax_scale
    )


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    head_dim = q.shape[-1]
    padding = -head_dim % 8
    scale = head_dim**-0.5 if scale is None else scale
    if padding:
        q, k, v = (torch.nn.functional.pad(tensor, [0, padding]) for tensor in (q, k, v))
    out: torch.Tensor = _aten._flash_attention_forward(
        q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, False, scale=scale
    )[0]
    return out[..., :head_dim] if padding else out


def install() -> None:
    """Makes transformers believe that flash-attn 2 is there, and use this module for it."""
    from transformers import modeling_flash_attention_utils, modeling_utils

    def lazy_imports(implementation: str | None, *_: Any, **__: Any) -> tuple[Any, ...]:
        utils = modeling_flash_attention_utils
        return flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input

    modeling_flash_attention_utils._lazy_imports = lazy_imports
    modeling_flash_attention_utils.flash_attn_supports_top_left_mask = lambda: False
    modeling_utils.PreTrainedModel._flash_attn_import_error = lambda *_, **__: None
