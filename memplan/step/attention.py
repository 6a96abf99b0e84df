"""Attention: rotary embedding, the kernel that scaled_dot_product_attention would choose, eager attention.

Symbols: B micro batch, S query length, T key length, A attention heads, K key/value heads, D head size.

Sources: transformers 5.23 integrations/sdpa_attention.py and the models' `eager_attention_forward`; torch 2.13
aten/src/ATen/native/transformers/cuda/{sdp_utils.cpp,attention.cu,flash_attn/flash_api.cpp}.

Known limits:
    cuDNN attention is never chosen; float32 with grouped heads is taken to run the memory-efficient kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.layers import LayerOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


class Kernel(StrEnum):
    """What runs behind `F.scaled_dot_product_attention`."""

    FLASH = "flash"
    EFFICIENT = "efficient"


def choose_kernel(dtype: DType, head_size: int, has_mask: bool, compute_capability: tuple[int, int]) -> Kernel:
    """The kernel that CUDA takes: flash for half precision without a mask on sm80 and newer, else memory-efficient.

    Flash refuses a head size above 192 with a gradient on sm86, sm89 and sm12x (sdp_utils.cpp,
    `check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`) and above 256 everywhere.
    """
    if has_mask or not dtype.is_half or compute_capability < (8, 0) or head_size > 256:
        return Kernel.EFFICIENT
    if head_size > 192 and compute_capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        return Kernel.EFFICIENT
    return Kernel.FLASH


class AttentionOps(LayerOps):
    """Everything between the projections of an attention block."""

    def split_heads(self, x: Tensor, heads: int, head_size: int) -> Tensor:
        """[B, S, A·D] viewed as [B, A, S, D]."""
        return self.view(x, (x.shape[0], heads, x.shape[1], head_size))

    def rotary_table(self, dtype: DType, head_size: int, length: int) -> tuple[Tensor, Tensor]:
        """Cos and sin of the rotary embedding, [1, S, D] each, made once per forward without gradients."""
        shape = (1, length, head_size)
        outer, self.grad_enabled = self.grad_enabled, False
        positions = self.new((1, length), DType.FLOAT32, "_to_copy")
        freqs = self.new((1, length, head_size // 2), DType.FLOAT32, "mul")
        del positions
        emb = self.new(shape, DType.FLOAT32, "cat")
        cos = ops.scale(self, self.new(shape, DType.FLOAT32, "cos"))
        sin = ops.scale(self, self.new(shape, DType.FLOAT32, "sin"))
        table = ops.to(self, cos, dtype), ops.to(self, sin, dtype)
        del freqs, emb
        self.grad_enabled = outer
        return table

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x * cos + rotate_half(x) * sin` for x [B, A, S, D]."""
        return (x * cos) + (rotate_half(self, x) * sin)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """Attention of q [B, A, S, D] on k, v [B, K, T, D], as [B, S, A, D]; `is_causal` changes no byte."""
        if self.settings.attn_implementation == "eager":
            return eager_attention(self, q, k, v, mask, dropout)
        autocast = self.settings.autocast
        if autocast is not None:
            q, k, v = ops.to(self, q, autocast), ops.to(self, k, autocast), ops.to(self, v, autocast)
        return sdpa(self, q, k, v, mask)


def rotate_half(t: AttentionOps, x: Tensor) -> Tensor:
    """`torch.cat((-x2, x1), dim=-1)`."""
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = t.view(x, half), t.view(x, half)
    negative = ops.neg(t, second)
    node = t.record("cat", (negative, first), (), _cat_backward, (half,))
    return t.new(x.shape, x.dtype, "cat", node)


def _cat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (half,) = cast(tuple[Shape], node.meta)
    return tuple(
        Tensor(tape, half, grad.dtype, grad.storage, None, is_view=True) if edge is not None else None
        for edge in node.edges
    )


def sdpa(t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention`; saves q, k, v, its output and the log-sum-exp."""
    batch, heads, length, size = q.shape
    kernel = choose_kernel(q.dtype, size, mask is not None, t.settings.compute_capability)
    shape = (batch, length, heads, size)
    out = t.alloc(shape, q.dtype, f"{kernel}_attention")
    if kernel is Kernel.FLASH:
        lse_shape: Shape = (batch, heads, length)
        extra = [t.alloc((2,), DType.INT64, "flash_attention"), t.alloc((1,), DType.INT64, "flash_attention")]
    else:
        lse_shape = (batch, heads, -(-length // 32) * 32)
        extra = []
    lse = t.alloc(lse_shape, DType.FLOAT32, f"{kernel}_attention")
    node = t.record(
        "sdpa", (q, k, v), (q, k, v, out, lse, *extra), _sdpa_backward, (q.shape, k.shape, v.shape, q.dtype, kernel)
    )
    return Tensor(t, shape, q.dtype, out, node)


def _sdpa_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    q_shape, k_shape, v_shape, dtype, kernel = cast(tuple[Shape, Shape, Shape, DType, Kernel], node.meta)
    kept = [node.stored(index) for index in range(len(node.saved))]
    name = f"{kernel}_attention_backward"
    grads = tuple(tape.new(shape, dtype, name) for shape in (q_shape, k_shape, v_shape))
    del kept
    return tuple(g if edge is not None else None for g, edge in zip(grads, node.edges, strict=True))


def eager_attention(t: AttentionOps, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`eager_attention_forward` of the Llama family: scores, softmax in float32, probabilities times values."""
    raise NotImplementedError
