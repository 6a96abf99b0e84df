"""Ops whose own fake kernel refuses, or cannot know what a GPU does.

`KERNELS` gives a shape; `DECOMPOSED` runs the op as the sequence of ops that its CUDA implementation runs, so that
intermediate tensors are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memplan.trace import losses, unsloth
from memplan.trace.spec import TraceSpec

Kernel = Callable[[Any, Any, Any], Any]


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """The meta kernel (torch/_meta_registrations.py, 2.13) takes bfloat16 only; CUDA falls back to a loop of gemms."""
    first, second = args[0], args[1]
    if first.dtype == torch.bfloat16:
        return func(*args, **kwargs)
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    shape: tuple[int, ...]
    if first.dim() == 2 and second.dim() == 2:
        shape = (offsets.shape[0], first.shape[0], second.shape[1])
    elif first.dim() == 2:
        shape = (first.shape[0], second.shape[-1])
    elif second.dim() == 2:
        shape = (first.shape[1], second.shape[1])
    else:
        shape = (first.shape[0], first.shape[1], second.shape[2])
    return torch.empty(shape, dtype=first.dtype, device=first.device)


KERNELS: dict[Any, Kernel] = {torch.ops.aten._grouped_mm.default: _grouped_mm}


class Int8Kernels:
    """LLM.int8 as bitsandbytes/backends/cuda/ops.py and backends/default/ops.py (0.50.2) run it.

    How many columns hold outliers depends on the data; `columns` of them are assumed in every layer.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def vectorwise_quant(self, tensor: torch.Tensor, threshold: float = 0.0) -> Any:
        """int8_vectorwise_quant: scales, int8 rows, and with a threshold the outlier columns."""
        rows = tensor.numel() // tensor.shape[-1]
        scales = torch.empty(rows, device=tensor.device, dtype=torch.float32)
        quantized = torch.empty(tensor.shape, device=tensor.device, dtype=torch.int8)
        columns = None
        if threshold > 0.0:
            outliers = tensor.abs() >= threshold
            outliers.any()
            columns = torch.empty(min(self.columns, tensor.shape[-1]), device=tensor.device, dtype=torch.int64)
        return quantized, scales, columns

    def vectorwise_dequant(self, tensor: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
        """int8_vectorwise_dequant, which CUDA has no kernel of its own for (bitsandbytes/_ops.py)."""
        product = tensor * stats.view(-1, 1)
        return product * (1 / 127)

    def scaled_mm(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        row_stats: torch.Tensor,
        col_stats: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """int8_scaled_mm: an int32 product, dequantized to float16, then cast to `dtype`."""
        product = torch.empty((*A.shape[:-1], B.shape[0]), device=A.device, dtype=torch.int32)
        out = torch.empty_like(product, dtype=torch.float16)
        if bias is not None and bias.dtype != torch.float16:
            out.add_(bias)
        return out.to(dtype or torch.float16)

    def mixed_scaled_mm(
        self,
        A: torch.Tensor,
        CA: torch.Tensor,
        CB: torch.Tensor,
        SCA: torch.Tensor,
        SCB: torch.Tensor,
        outlier_cols: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> Any:
        """int8_mixed_scaled_mm: the int8 product, plus a 16-bit product over the outlier columns."""
        sub_weight = None
        if outlier_cols is not None and outlier_cols.numel():
            sub_input = A[:, outlier_cols].contiguous()
            sub_int8 = CB[:, outlier_cols].contiguous()
            sub_weight = (sub_int8 * SCB.view(-1, 1)).to(A.dtype).t()
        else:
            sub_input = torch.empty(0, device=A.device, dtype=A.dtype)
        output = self.scaled_mm(CA, CB, SCA, SCB, bias=bias, dtype=A.dtype)
        if sub_weight is not None:
            output = output.addmm(sub_input, sub_weight)
        return output, sub_input


def decompositions(spec: TraceSpec) -> dict[Any, Callable[..., Any]]:
    """Ops that this trace runs as a sequence of ops."""
    always: dict[Any, Callable[..., Any]] = {torch.ops.aten.equal.default: losses.equal}
    if spec.stack == "unsloth":
        always |= unsloth.decompositions()
    if not spec.load_in_8bit and not spec.has_loftq:
        return always
    import bitsandbytes  # noqa: F401  (registers the ops)

    kernels = Int8Kernels(spec.llm_int8_outlier_columns)
    ops = torch.ops.bitsandbytes
    return always | {
        ops.int8_vectorwise_quant.default: kernels.vectorwise_quant,
        ops.int8_vectorwise_dequant.default: kernels.vectorwise_dequant,
        ops.int8_scaled_mm.default: kernels.scaled_mm,
        ops.int8_mixed_scaled_mm.default: kernels.mixed_scaled_mm,
    }
