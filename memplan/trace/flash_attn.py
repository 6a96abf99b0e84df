"""What the flash-attn package does, with ops that allocate what its CUDA kernels allocate and compute nothing.

`FlashAttnFunc` and `FlashAttnVarlenFunc` of flash_attn/flash_attn_interface.py and `pad_input`, `unpad_input` of
flash_attn/bert_padding.py (2.8.3) stand here with what they save and allocate; the two pairs of ops stand for
csrc/flash_attn/flash_api.cpp: `mha_fwd`, `mha_varlen_fwd` (out like q, row sums in float32 as [batch, heads, sequence] or
[heads, tokens], a random state of two integers) and `mha_bwd`, `mha_varlen_bwd` (softmax_d; what else they borrow is in
`memplan/trace/temporaries.py`).

Known limits:
    `set_params_splitkv` of `mha_fwd` is left out: partial sums where there are fewer blocks of 64 queries than twice the
    multiprocessors, 17 MB at the most.
"""

from __future__ import annotations

from typing import Any

import torch

_NAMESPACE = "memplan_flash_attn"
_ops: Any = getattr(torch.ops, _NAMESPACE)
_EIGHT = 8


def _define() -> None:
    """Registers the four ops, once a process."""
    if hasattr(_ops, "forward"):
        return
    tensors = "Tensor q, Tensor k, Tensor v"
    gradients = f"Tensor dout, {tensors}, Tensor out, Tensor softmax_lse, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv"
    texts = "Tensor cu_seqlens_q, Tensor cu_seqlens_k"
    for name, schema, fake in (
        ("forward", f"({tensors}) -> (Tensor, Tensor, Tensor)", _forward),
        ("varlen_forward", f"({tensors}, {texts}) -> (Tensor, Tensor, Tensor)", _varlen_forward),
        ("backward", f"({gradients}) -> Tensor", _backward),
        ("varlen_backward", f"({gradients}, {texts}) -> Tensor", _varlen_backward),
    ):
        torch.library.define(f"{_NAMESPACE}::{name}", schema)
        torch.library.register_fake(f"{_NAMESPACE}::{name}", fake)


def _forward(q: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    batch, length, heads, _size = q.shape
    return torch.empty_like(q), q.new_empty((batch, heads, length), dtype=torch.float32), _random_state(q)


def _varlen_forward(q: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    tokens, heads, _size = q.shape
    return torch.empty_like(q), q.new_empty((heads, tokens), dtype=torch.float32), _random_state(q)


def _random_state(q: torch.Tensor) -> torch.Tensor:
    return q.new_empty(2, dtype=torch.int64)


def _backward(_dout: torch.Tensor, q: torch.Tensor, *_: Any) -> torch.Tensor:
    batch, length, heads, _size = q.shape
    return q.new_empty((batch, heads, -(-length // 128) * 128), dtype=torch.float32)


def _varlen_backward(*args: Any) -> torch.Tensor:
    q, cu_seqlens_q = args[1], args[9]
    softmax_d: torch.Tensor = q.new_empty(
        (q.shape[1], q.shape[0] + 128 * (cu_seqlens_q.shape[0] - 1)), dtype=torch.float32
    )
    return softmax_d


def _padded(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, [0, _EIGHT - size % _EIGHT]) if size % _EIGHT else x


def _dense_last(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.contiguous() if tensor.stride(-1) != 1 else tensor for tensor in tensors]


class FlashAttnFunc(torch.autograd.Function):  # type: ignore[misc]
    """Attention over [batch, sequence, heads, head_dim]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_grad_enabled: bool) -> torch.Tensor:
        """The result; q, k, v, result, row sums and random state are saved."""
        size = q.size(3)
        is_grad = is_grad_enabled and any(x.requires_grad for x in (q, k, v))
        q, k, v = (_padded(x, size) for x in (q, k, v))
        out, softmax_lse, rng_state = _ops.forward(*_dense_last(q, k, v))
        if is_grad:
            ctx.save_for_backward(q, k, v, out, softmax_lse, rng_state)
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        """Gradients of q, k and v."""
        q, k, v, out, softmax_lse, _rng_state = ctx.saved_tensors
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        size = dout.size(3)
        dout, q, k, v, out = _dense_last(_padded(dout, size), q, k, v, out)
        _ops.backward(dout, q, k, v, out, softmax_lse, *gradients)
        return *(gradient[..., :size] for gradient in gradients), None


class FlashAttnVarlenFunc(torch.autograd.Function):  # type: ignore[misc]
    """Attention over [tokens, heads, head_dim], sequences delimited by `cu_seqlens`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: Any,
        max_seqlen_k: Any,
        is_grad_enabled: bool,
    ) -> torch.Tensor:
        """The result; the delimiters are saved as well. Longest lengths, numbers or tensors, stay on `ctx`."""
        size = q.size(2)
        is_grad = is_grad_enabled and any(x.requires_grad for x in (q, k, v))
        q, k, v = (_padded(x, size) for x in (q, k, v))
        out, softmax_lse, rng_state = _ops.varlen_forward(*_dense_last(q, k, v), cu_seqlens_q, cu_seqlens_k)
        if is_grad:
            ctx.save_for_backward(q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, rng_state)
            ctx.max_seqlen_q, ctx.max_seqlen_k = max_seqlen_q, max_seqlen_k
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        """Gradients of q, k and v."""
        q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, _rng_state = ctx.saved_tensors
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        size = dout.size(2)
        dout, q, k, v, out = _dense_last(_padded(dout, size), q, k, v, out)
        _ops.varlen_backward(dout, q, k, v, out, softmax_lse, *gradients, cu_seqlens_q, cu_seqlens_k)
        return *(gradient[..., :size] for gradient in gradients), None, None, None, None, None


class IndexFirstAxis(torch.autograd.Function):  # type: ignore[misc]
    """`x[indices]` by `torch.gather`, whose gradient is scattered into zeros."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The rows of x [rows, ...] at `indices`."""
        ctx.save_for_backward(indices)
        ctx.rows, shape = x.shape[0], x.shape[1:]
        columns = indices[:, None].expand(-1, shape.numel())
        return torch.gather(x.reshape(x.shape[0], -1), 0, columns).reshape(-1, *shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient of x."""
        (indices,) = ctx.saved_tensors
        shape = gradient.shape[1:]
        flat = gradient.reshape(gradient.shape[0], -1)
        out = torch.zeros([ctx.rows, flat.shape[1]], device=flat.device, dtype=flat.dtype)
        out.scatter_(0, indices[:, None].expand(-1, flat.shape[1]), flat)
        return out.reshape(ctx.rows, *shape), None


class IndexPutFirstAxis(torch.autograd.Function):  # type: ignore[misc]
    """Rows put into zeros at `indices`."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        """[rows, ...] from [tokens, ...]."""
        ctx.save_for_backward(indices)
        out = torch.zeros(rows, *values.shape[1:], device=values.device, dtype=values.dtype)
        out[indices] = values
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient of the rows that were put in."""
        (indices,) = ctx.saved_tensors
        return gradient[indices], None, None


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
    return FlashAttnFunc.apply(q, k, v, torch.is_grad_enabled())


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
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
    return FlashAttnVarlenFunc.apply(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, torch.is_grad_enabled()
    )


def unpad_input(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[Any, ...]:
    """The tokens of [batch, sequence, ...] that the mask lets through, and where they were."""
    lengths = attention_mask.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(attention_mask.flatten(), as_tuple=False).flatten()
    longest = lengths.max().item()
    cu_seqlens = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    rows = hidden_states.reshape(-1, *hidden_states.shape[2:])
    return IndexFirstAxis.apply(rows, indices), indices, cu_seqlens, longest, used


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """[tokens, ...] back in [batch, sequence, ...]."""
    out: torch.Tensor = IndexPutFirstAxis.apply(hidden_states, indices, batch * length)
    return out.reshape(batch, length, *out.shape[1:])


def install() -> None:
    """Makes transformers believe that flash-attn 2 is there, and use this module for it."""
    from transformers import modeling_flash_attention_utils, modeling_utils

    _define()

    def lazy_imports(implementation: str | None, *_: Any, **__: Any) -> tuple[Any, ...]:
        return flash_attn_func, flash_attn_varlen_func, None, pad_input, unpad_input

    modeling_flash_attention_utils._lazy_imports = lazy_imports
    modeling_flash_attention_utils.flash_attn_supports_top_left_mask = lambda: False
    modeling_utils.PreTrainedModel._flash_attn_import_error = lambda *_, **__: None
