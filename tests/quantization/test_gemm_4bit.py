"""The kernel choice against bitsandbytes' own function, taken out of its source because its module needs CUDA."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memplan.dtypes import DType
from memplan.quantization.gemm_4bit import ALWAYS_FUSED_ROWS, MAX_FUSED_ROWS, Gpu, uses_fused_kernel

GPUS = {
    "t4": Gpu((7, 5), 40),
    "v100": Gpu((7, 0), 80),
    "a100": Gpu((8, 0), 108),
    "rtx-3090": Gpu((8, 6), 82),
    "a10": Gpu((8, 6), 72),
    "orin": Gpu((8, 7), 16),
    "rtx-4090": Gpu((8, 9), 128),
    "l4": Gpu((8, 9), 58),
    "h100": Gpu((9, 0), 132),
    "h100-pcie": Gpu((9, 0), 114),
    "b200": Gpu((10, 0), 148),
    "thor": Gpu((11, 0), 20),
    "rtx-5090": Gpu((12, 0), 170),
    "rtx-5070": Gpu((12, 0), 48),
    "gb10": Gpu((12, 1), 48),
    "odd": Gpu((8, 9), 77),
}
FEATURES = (64, 576, 704, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192, 10240, 11008, 14336, 28672, 128256)
ROWS = (1, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 23, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 257, 320, 384, 512,
        513, 1536, 1537, 8192)  # fmt: skip


@functools.cache
def _source() -> ast.Module:
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / "backends/cuda/ops.py").read_text(encoding="utf-8"))


def _constant(name: str) -> list[int]:
    """Every value that `name` is assigned in the module."""
    return [
        node.value.value
        for node in ast.walk(_source())
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == name
        and isinstance(node.value, ast.Constant)
    ]


def _upstream(gpu: Gpu) -> Callable[[int, torch.dtype, int, int, int], bool]:
    name = "_gemm_4bit_use_custom_cuda"
    function = next(node for node in _source().body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.decorator_list = []
    properties = (gpu.multiprocessors, *gpu.compute_capability)
    namespace = {
        "torch": torch,
        "_gpu_dispatch_props": lambda _: properties,
        "_GEMM_4BIT_CUSTOM_FLOOR_M": _constant("_GEMM_4BIT_CUSTOM_FLOOR_M")[0],
    }
    exec(compile(ast.Module([function], []), name, "exec"), namespace)
    return namespace[name]  # type: ignore[return-value]


def test_bounds_are_the_library_s() -> None:
    assert _constant("_GEMM_4BIT_CUSTOM_FLOOR_M") == [ALWAYS_FUSED_ROWS]
    assert MAX_FUSED_ROWS in _constant("_gemm_4bit_custom_max_m")


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32])
def test_same_choice_as_bitsandbytes(name: str, dtype: DType) -> None:
    gpu = GPUS[name]
    upstream = _upstream(gpu)
    torch_dtype = getattr(torch, dtype)
    for n in FEATURES:
        for k in FEATURES:
            for rows in ROWS:
                expected = rows <= MAX_FUSED_ROWS and upstream(0, torch_dtype, rows, n, k)
                assert uses_fused_kernel(gpu, dtype, rows, (n, k)) is bool(expected), (rows, n, k)


def test_features_that_do_not_fill_a_block_are_dequantized() -> None:
    assert uses_fused_kernel(GPUS["rtx-4090"], DType.BFLOAT16, 1, (4096, 4096))
    assert not uses_fused_kernel(GPUS["rtx-4090"], DType.BFLOAT16, 1, (4096, 4100))
    assert not uses_fused_kernel(GPUS["rtx-4090"], DType.BFLOAT16, 1, (4096, 64), blocksize=128)
