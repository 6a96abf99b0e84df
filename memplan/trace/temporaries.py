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


def _flash_attn_accumulators(rows: int, query: torch.Tensor, key: torch.Tensor) -> Iterable[int]:
    heads, head_dim = query.shape[-2:]
    yield rows * heads * _round_up(head_dim, 32 if head_dim <= 128 else 64) * 4
    if key.shape[-2] != heads:
        yield from [key.numel() // key.shape[-2] * heads * key.element_size()] * 2


def flash_attn_backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> Iterable[int]:
    """csrc/flash_attn/flash_api.cpp, mha_bwd on [batch, sequence, heads, dim]: dq_accum, expanded dk and dv."""
    return _flash_attn_accumulators(query.shape[0] * _round_up(query.shape[1], 128), query, key)


def flash_attn_varlen_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *rest: Any
) -> Iterable[int]:
    """csrc/flash_attn/flash_api.cpp, mha_varlen_bwd on [tokens, heads, dim]: the same.

    The accumulator has 128 rows a sequence more than there are tokens.
    """
    return _flash_attn_accumulators(query.shape[0] + 128 * (rest[6].shape[0] - 1), query, key)


def index_put(
    self: torch.Tensor, indices: Any, values: torch.Tensor, accumulate: bool = False, *_: Any
) -> Iterable[int]:
    """cuda/Indexing.cu, index_put_with_sort_kernel: linearIndex, sorted_indices, orig_indices, range, the sort's buffers.

    Counted for tokens of several heads; elsewhere what sorting and indexing borrow is not.
    """
    if accumulate and values.dim() == 3 and len(indices) == 1:
        yield from [indices[0].numel() * 8] * 6


def efficient_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> Iterable[int]:
    """transformers/cuda/attention_backward.cu, _efficient_attention_backward: delta, in float32 per query."""
    batch, heads, query_length, head_dim = query.shape
    yield batch * heads * _round_up(query_length, 32) * 4
    if query.element_size() == 2:
        blocks = _round_up(query_length, 64) // 64
        columns = _round_up(head_dim, 64) // 64
        yield batch * heads * blocks * columns * (64 * 64 * 4 + 16)


def embedding_backward(
    grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *_: Any, **__: Any
) -> Iterable[int]:
    """A copy of a strided gradient; above 3072 indices also a sort, and partial sums over pieces of 10 indices.

    aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda: `grad_.contiguous()`, sorted_indices,
    orig_indices, range and the radix sort's double buffer (int64 each). EmbeddingBackwardKernel.cu,
    embedding_backward_cuda_kernel: segment_offsets [n], two arrays [segments], partial_segment_offset [pieces] and
    grad_weight_per_segment [pieces, width] in the accumulation type, with segments = min(n, num_weights) and
    pieces = n / 10 + segments.
    """
    if not grad.is_contiguous():
        yield grad.numel() * grad.element_size()
    row = table()["embedding_dense_backward"]
    count = indices.numel()
    if count <= int(row["max_unsorted_indices"]):
        return
    yield from [count * 8] * 6
    segments = min(count, num_weights)
    pieces = count // int(row["indices_per_piece"]) + segments
    yield from [segments * 8] * 2
    yield pieces * 8
    yield pieces * grad.shape[-1] * max(grad.element_size(), 4)


def gemm_4bit(query: torch.Tensor, weight: torch.Tensor, shape: Any, *rest: Any, **kwargs: Any) -> Iterable[int]:
    """bitsandbytes/backends/cuda/ops.py, _dequant_linear_fallback: absmax_dq and its sum with the offset, then the weight."""
    rows = query.numel() // query.shape[-1]
    always = rows <= int(table()["gemm_4bit"]["custom_kernel_max_rows"])
    if always and query.shape[-1] % int(rest[1] if len(rest) > 1 else kwargs["blocksize"]) == 0:
        return
    absmax_8bit = kwargs.get("absmax_8bit")
    if absmax_8bit is None and len(rest) > 4:
        absmax_8bit = rest[4]
    if absmax_8bit is not None:
        yield from [absmax_8bit.numel() * 4] * 2
    elements = 1
    for size in shape:
        elements *= size
    yield elements * query.element_size()


def safe_softmax(self: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """aten/src/ATen/native/transformers/attention.cpp, _safe_softmax: which elements and rows are -inf, and a zero."""
    yield self.numel()
    yield self.numel() // self.size(-1)
    yield self.element_size()


def softmax_backward(grad: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out: the kernel first forms `grad * output`."""
    yield grad.numel() * grad.element_size()


def linalg_svd(self: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """cuda/linalg/BatchLinearAlgebraLib.cpp, svd_cusolver by its default driver, gesvdj: info, and a column-major copy.

    Up to 32 rows and columns gesvdjBatched makes both factors square. cuSOLVER's own workspace is in no source.
    """
    rows, columns = self.shape[-2:]
    yield 4
    yield self.numel() * self.element_size()
    if max(rows, columns) <= int(table()["linalg_svd"]["batched_max_size"]) and rows != columns:
        yield max(rows, columns) ** 2 * self.element_size()


def linalg_qr(self: torch.Tensor, *_: Any, **__: Any) -> Iterable[int]:
    """BatchLinearAlgebra.cpp, linalg_qr_out: tau, and info of geqrf and orgqr; the matrix is written into Q or R."""
    yield min(self.shape[-2:]) * self.element_size()
    yield 4


_RULES: dict[str, Callable[..., Iterable[int]]] = {
    "aten::_linalg_svd": linalg_svd,
    "aten::linalg_qr": linalg_qr,
    "aten::_scaled_dot_product_flash_attention_backward": flash_backward,
    "memplan_flash_attn::backward": flash_attn_backward,
    "memplan_flash_attn::varlen_backward": flash_attn_varlen_backward,
    "aten::index_put": index_put,
    "aten::_scaled_dot_product_efficient_attention_backward": efficient_backward,
    "aten::embedding_dense_backward": embedding_backward,
    "aten::_safe_softmax": safe_softmax,
    "aten::_softmax_backward_data": softmax_backward,
    "bitsandbytes::gemm_4bit": gemm_4bit,
}
# Ops that allocate their output last.
_OUTPUT_LAST = {"bitsandbytes::gemm_4bit"}
_CUBLAS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"}


class KernelTemporaries:
    """Adds the hidden allocations of each op as events that last as long as the op."""

    def __init__(self, arch: GpuArch) -> None:
        self.arch = arch
        self.workspace_bytes = _cublas_workspace_bytes(arch)
        # Main thread and autograd's device thread have a handle each (CUDABlas handles are thread-local).
        self._workspaces: set[bool] = set()
        self.counted: dict[str, int] = {}
        self._held: list[int] = []

    def before(self, recorder: Recorder, func: Any, args: Any, kwargs: Any) -> None:
        """Called by the recorder before `func` runs."""
        name = func._schema.name
        if name in _OUTPUT_LAST:
            self._held = self._allocate(recorder, name, args, kwargs)

    def after(self, recorder: Recorder, func: Any, args: Any, kwargs: Any, out: Any, first_new: int) -> None:
        """Called by the recorder once `func`'s outputs are recorded."""
        name = func._schema.name
        if name in _CUBLAS and recorder.in_backward not in self._workspaces and _on_device(args, recorder.device_type):
            self._workspaces.add(recorder.in_backward)
            thread = "autograd" if recorder.in_backward else "main"
            recorder.allocate(
                self.workspace_bytes, "cublas_workspace", name=f"cuBLAS workspace of the {thread} thread",
                component="temporaries",
            )  # fmt: skip
        held, self._held = self._held, []
        if name not in _OUTPUT_LAST:
            held = self._allocate(recorder, name, args, kwargs)
        for storage_id in held:
            recorder.release(storage_id)
        if held:
            self.counted[name] = self.counted.get(name, 0) + 1

    @staticmethod
    def _allocate(recorder: Recorder, name: str, args: Any, kwargs: Any) -> list[int]:
        rule = _RULES.get(name)
        if rule is None or not _on_device(args, recorder.device_type):
            return []
        path = recorder.modules.current(recorder.in_backward)
        return [
            recorder.allocate(size, name.removeprefix("aten::") + " (inside)", component="temporaries", path=path)
            for size in rule(*args, **kwargs)
        ]


def _on_device(args: Any, device_type: str) -> bool:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return bool(arg.device.type == device_type)
    return False


def _cublas_workspace_bytes(arch: GpuArch) -> int:
    row = table()["cublas_workspace"]
    return int(row["sm90_bytes"]) if arch.capability[0] >= 9 else int(row["default_bytes"])
