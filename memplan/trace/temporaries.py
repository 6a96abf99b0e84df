"""What kernels allocate inside themselves, where a fake tensor cannot see it.

The formulas are below, one function an op; the constants and the source of each formula are rows of
`memplan/catalog/kernel_temporaries.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch

from memplan.trace.spec import GpuArch

if TYPE_CHECKING:
    from memplan.trace.recorder import Recorder

_aten = torch.ops.aten


@cache
def table() -> dict[str, dict[str, Any]]:
    """The rows of kernel_temporaries.toml by their name."""
    text = files("memplan").joinpath("catalog", "kernel_temporaries.toml").read_text(encoding="utf-8")
    return {row["name"]: row for row in tomllib.loads(text)["temporary"]}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def flash_backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """flash_attn/flash_api.cpp, mha_bwd: softmax_d, dq_accum and, with grouped heads, expanded dk and dv."""
    batch, heads, query_length, head_dim = query.shape
    key_heads, key_length = key.shape[1], key.shape[2]
    rounded = _round_up(query_length, 128)
    yield batch * heads * rounded * 4
    yield batch * rounded * heads * _round_up(head_dim, 32 if head_dim <= 128 else 64) * 4
    if key_heads != heads:
        yield from [batch * key_length * heads * head_dim * query.element_size()] * 2


def efficient_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> Iterable[int]:
    """transformers/cuda/attention_backward.cu, _efficient_attention_backward: delta, in float32 per query."""
    batch, heads, query_length, _head_dim = query.shape
    yield batch * heads * _round_up(query_length, 32) * 4


def embedding_backward(
    grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *_: Any, **__: Any
) -> Iterable[int]:
    """EmbeddingBackwardKernel.cu: above 3072 indices they are sorted, and gradients are summed in float32 pieces.

    cuda/Embedding.cu, embedding_dense_backward_cuda: sorted_indices and orig_indices (int64); the sort itself takes
    index and key buffers of the same size. EmbeddingBackwardKernel.cu, embedding_backward_cuda_kernel: per-segment
    offsets and partial sums for at most n / 10 + min(n, num_weights) pieces of 10 indices. A gradient that is not
    contiguous is copied first (the CPU kernel does the same).
    """
    if not grad.is_contiguous():
        yield grad.numel() * grad.element_size()
    count = indices.numel()
    threshold = int(table()["embedding_dense_backward"]["max_unsorted_indices"])
    if count <= threshold:
        return
    yield from [count * 8] * 4
    segments = min(count, num_weights)
    pieces = count // int(table()["embedding_dense_backward"]["indices_per_piece"]) + segments
    width = grad.shape[-1]
    yield from [pieces * 8] * 2
    if grad.dtype in (torch.float16, torch.bfloat16):
        yield pieces * _round_up(width, 32) * 4


def gemm_4bit(query: torch.Tensor, weight: torch.Tensor, shape: Any, *rest: Any, **kwargs: Any) -> Iterable[int]:
    """bitsandbytes/backends/cuda/ops.py, _dequant_linear_fallback: the weight, and its nested absmax, dequantized."""
    rows = query.numel() // query.shape[-1]
    if rows <= int(table()["gemm_4bit"]["custom_kernel_max_rows"]):
        return
    absmax_8bit = kwargs.get("absmax_8bit")
    if absmax_8bit is None and len(rest) > 4:
        absmax_8bit = rest[4]
    if absmax_8bit is not None:
        yield absmax_8bit.numel() * 4
    elements = 1
    for size in shape:
        elements *= size
    yield elements * query.element_size()


def safe_softmax(self: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """aten/src/ATen/native/SoftMax.cpp, _safe_softmax: a bool for every element, to find rows that are wholly masked."""
    yield self.numel()


_RULES: dict[str, Callable[..., Iterable[int]]] = {
    "aten::_scaled_dot_product_flash_attention_backward": flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": efficient_backward,
    "aten::embedding_dense_backward": embedding_backward,
    "aten::_safe_softmax": safe_softmax,
    "bitsandbytes::gemm_4bit": gemm_4bit,
}
_CUBLAS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"}


class KernelTemporaries:
    """Adds the hidden allocations of each op as events that last as long as the op."""

    def __init__(self, arch: GpuArch) -> None:
        self.arch = arch
        self.workspace_bytes = _cublas_workspace_bytes(arch)
        self._workspace_id = 0
        self.counted: dict[str, int] = {}

    def after(self, recorder: Recorder, func: Any, args: Any, kwargs: Any, out: Any, first_new: int) -> None:
        """Called by the recorder once `func`'s outputs are recorded."""
        name = func._schema.name
        if not self._workspace_id and name in _CUBLAS and _on_device(args, recorder.device_type):
            self._workspace_id = recorder.allocate(
                self.workspace_bytes, "cublas_workspace", name="cuBLAS workspace", component="temporaries"
            )
        rule = _RULES.get(name)
        if rule is None or not _on_device(args, recorder.device_type):
            return
        path = recorder.modules.current(recorder.in_backward)
        held = [
            recorder.allocate(size, name.removeprefix("aten::") + " (inside)", component="temporaries", path=path)
            for size in rule(*args, **kwargs)
        ]
        for storage_id in held:
            recorder.release(storage_id)
        if held:
            self.counted[name] = self.counted.get(name, 0) + 1


def _on_device(args: Any, device_type: str) -> bool:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return bool(arg.device.type == device_type)
    return False


def _cublas_workspace_bytes(arch: GpuArch) -> int:
    row = table()["cublas_workspace"]
    return int(row["sm90_bytes"]) if arch.capability[0] == 9 else int(row["default_bytes"])
