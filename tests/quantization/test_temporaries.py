"""Temporaries against the live bytes of the libraries' own code: its Python allocates, its kernels do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.autograd import _functions
from transformers import FineGrainedFP8Config
from transformers.integrations import finegrained_fp8

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.quantization import (
    Gpu,
    Quantization,
    Scheme,
    backward_temporaries,
    backward_temporary_bytes,
    forward_temporaries,
    forward_temporary_bytes,
    load_transient_bytes,
    saves_input,
    storage_bytes,
)

Peak = Callable[[Callable[[], Any]], tuple[int, Any]]
N, K, ROWS = 192, 320, 40


def _torch(dtype: DType) -> torch.dtype:
    return getattr(torch, dtype)  # type: ignore[no-any-return]


def _weight(double_quant: bool, dtype: DType) -> tuple[torch.Tensor, functional.QuantState]:
    weight = torch.randn(N, K, dtype=_torch(dtype))
    return functional.quantize_4bit(weight, compress_statistics=double_quant, quant_type="nf4")


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("compute", [DType.BFLOAT16, DType.FLOAT32])
def test_4bit_forward(cuda_ops: dict[str, Any], peak_bytes: Peak, compute: DType, double_quant: bool) -> None:
    packed, state = _weight(double_quant, DType.BFLOAT16)
    x = torch.randn(ROWS, K, dtype=_torch(compute))
    if double_quant:
        nested = {"absmax_8bit": state.absmax, "absmax_code": state.state2.code, "absmax_offset": state.offset}
        absmax = state.state2.absmax
    else:
        nested, absmax = {}, state.absmax
    fallback = cuda_ops["_dequant_linear_fallback"]
    peak, output = peak_bytes(lambda: fallback(x, packed, state.shape, absmax, 64, "nf4", **nested))
    quantization = Quantization(Scheme.NF4, double_quant=double_quant, compute_dtype=compute)
    assert peak - output.nbytes == forward_temporary_bytes(quantization, (N, K), ROWS, compute)
    assert forward_temporaries(quantization, (N, K), ROWS, compute)[0].output_alive


def test_4bit_forward_in_float32_under_autocast(cuda_ops: dict[str, Any], peak_bytes: Peak) -> None:
    """The default compute dtype under bf16 autocast: `F.linear` casts the dequantized weight and the input again."""
    packed, state = _weight(False, DType.BFLOAT16)
    x = torch.randn(ROWS, K)
    fallback = cuda_ops["_dequant_linear_fallback"]

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return fallback(x, packed, state.shape, state.absmax, 64, "nf4")  # type: ignore[no-any-return]

    peak, output = peak_bytes(run)
    assert output.dtype is torch.bfloat16
    quantization = Quantization(Scheme.NF4)
    ours = forward_temporary_bytes(quantization, (N, K), ROWS, DType.FLOAT32, autocast_dtype=DType.BFLOAT16)
    assert peak - output.nbytes == ours == N * K * (4 + 2) + ROWS * K * 2


def test_autocast_reaches_into_the_custom_op() -> None:
    packed, state = _weight(False, DType.FLOAT32)
    with torch.autocast("cpu", torch.bfloat16):
        output = bnb.matmul_4bit(torch.randn(ROWS, K, requires_grad=True), packed, quant_state=state)
    assert output.dtype is torch.bfloat16


def test_4bit_forward_with_the_fused_kernel_needs_nothing() -> None:
    quantization = Quantization(Scheme.NF4, double_quant=True, compute_dtype=DType.BFLOAT16)
    rtx_4090 = Gpu((8, 9), 128)
    assert forward_temporary_bytes(quantization, (4096, 4096), 1, DType.BFLOAT16, rtx_4090) == 0
    past_the_limit = forward_temporary_bytes(quantization, (4096, 4096), 1537, DType.BFLOAT16, rtx_4090)
    assert past_the_limit == 4096 * 4096 * 2 + 2 * 262_144 * 4


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("weight_dtype", [DType.BFLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("grad_dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_4bit_backward(peak_bytes: Peak, grad_dtype: DType, weight_dtype: DType, double_quant: bool) -> None:
    packed, state = _weight(double_quant, weight_dtype)
    x = torch.randn(ROWS, K, dtype=_torch(grad_dtype), requires_grad=True)
    output = bnb.matmul_4bit(x, packed, quant_state=state)
    gradient = torch.ones_like(output)
    peak, (grad_x,) = peak_bytes(lambda: torch.autograd.grad(output, x, gradient))
    quantization = Quantization(Scheme.NF4, double_quant=double_quant)
    moments = backward_temporaries(quantization, (N, K), weight_dtype, grad_dtype)
    assert peak == max(moment.size_bytes + moment.output_alive * grad_x.nbytes for moment in moments)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
@pytest.mark.parametrize(("out_features", "in_features"), [(N, K), (N, 4 * N)])
def test_int8_forward(
    cuda_ops: dict[str, Any], peak_bytes: Peak, out_features: int, in_features: int, dtype: DType
) -> None:
    x = torch.zeros(ROWS, in_features, dtype=_torch(dtype))
    quantize, matmul, dequantize = (
        cuda_ops[f"bitsandbytes::{name}"] for name in ("int8_vectorwise_quant", "int8_linear_matmul", "int8_mm_dequant")
    )
    weight, scales = torch.zeros(out_features, in_features, dtype=torch.int8), torch.ones(out_features)

    def scaled_matmul(quantized: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # bitsandbytes/backends/default/ops.py, int8_scaled_mm, keeps the accumulator in a local variable.
        accumulator = matmul(quantized, weight)
        return dequantize(accumulator, rows, scales, dtype=x.dtype)  # type: ignore[no-any-return]

    def forward() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        quantized, rows, _ = quantize(x.to(torch.float16), 6.0)
        return scaled_matmul(quantized, rows), quantized, rows

    shape = (out_features, in_features)
    moments = forward_temporaries(Quantization(Scheme.INT8), shape, ROWS, dtype)
    peak, (output, *_) = peak_bytes(forward)
    assert peak == max(moment.size_bytes + moment.output_alive * output.nbytes for moment in moments)
    quantized, rows, _ = quantize(x.to(torch.float16), 6.0)
    peak, _ = peak_bytes(lambda: scaled_matmul(quantized, rows))
    assert peak + quantized.nbytes + rows.nbytes == moments[1].size_bytes + output.nbytes
    peak, _ = peak_bytes(lambda: quantize(x.to(torch.float16), 6.0))
    assert peak == moments[0].size_bytes


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_int8_backward_and_saved_input(peak_bytes: Peak, dtype: DType) -> None:
    layer = bnb.nn.Linear8bitLt(K, N, bias=False, has_fp16_weights=False).to("cpu")
    layer.init_8bit_state()
    x = torch.randn(ROWS, K, dtype=_torch(dtype), requires_grad=True)
    output = _functions.MatMul8bitLt.apply(x, layer.weight, None, None, layer.state)
    saved = output.grad_fn.tensors[2]  # type: ignore[union-attr]
    assert (saved.data_ptr() == x.data_ptr()) is saves_input(Quantization(Scheme.INT8))
    gradient = torch.ones_like(output)
    peak, (grad_x,) = peak_bytes(lambda: torch.autograd.grad(output, x, gradient))
    moments = backward_temporaries(Quantization(Scheme.INT8), (N, K), dtype, dtype)
    # `SCB.unsqueeze(1).mul(1 / 127)` is an argument of `mul_`, so both moments' tensors are known to be distinct.
    assert peak == max(moment.size_bytes + moment.output_alive * grad_x.nbytes for moment in moments)


def test_4bit_saves_no_input() -> None:
    packed, state = _weight(True, DType.FLOAT32)
    x = torch.randn(ROWS, K, requires_grad=True)
    output = bnb.matmul_4bit(x, packed, quant_state=state)
    assert output.grad_fn is not None
    assert output.grad_fn.tensors[0] is None  # type: ignore[attr-defined]
    assert not saves_input(Quantization(Scheme.NF4))


@pytest.mark.parametrize("block_shape", [(64, 64), None])
def test_fp8_backward(peak_bytes: Peak, block_shape: tuple[int, int] | None) -> None:
    quantization = Quantization(Scheme.FP8, block_shape=block_shape)
    weight = torch.zeros(N, K).to(torch.float8_e4m3fn)
    scales = torch.ones(() if block_shape is None else (3, 5))
    peak, _ = peak_bytes(
        lambda: finegrained_fp8._dequantize_fp8_weight(
            weight, scales, list(block_shape) if block_shape else None, torch.bfloat16
        )
    )
    assert peak == backward_temporary_bytes(quantization, (N, K), DType.BFLOAT16, DType.BFLOAT16)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_4bit_load(peak_bytes: Peak, dtype: DType, double_quant: bool) -> None:
    bnb.nn.Params4bit(torch.randn(64, 64), compress_statistics=True).to("cpu")  # makes the process's code book
    source = torch.randn(N, K, dtype=_torch(dtype))

    def load() -> tuple[torch.Tensor, bnb.nn.Params4bit]:
        value = source.clone()  # held by the loader while it is quantized
        return value, bnb.nn.Params4bit(value, compress_statistics=double_quant, quant_type="nf4").to("cpu")

    peak, _ = peak_bytes(load)
    quantization = Quantization(Scheme.NF4, double_quant=double_quant)
    stored = storage_bytes(quantization, (N, K), dtype).total_bytes
    assert peak - stored == load_transient_bytes(quantization, (N, K), dtype)


def test_4bit_load_of_conv1d_makes_the_transpose_contiguous(peak_bytes: Peak) -> None:
    source = torch.randn(K, N, dtype=torch.bfloat16)

    def load() -> tuple[torch.Tensor, bnb.nn.Params4bit]:
        value = source.clone()
        return value, bnb.nn.Params4bit(value.T, compress_statistics=False, quant_type="nf4").to("cpu")

    peak, _ = peak_bytes(load)
    quantization = Quantization(Scheme.NF4)
    stored = storage_bytes(quantization, (N, K), DType.BFLOAT16).total_bytes
    code_book = 16 * 4 + 4
    assert peak - stored == 2 * N * K * 2 + code_book
    assert peak - stored == load_transient_bytes(quantization, (N, K), DType.BFLOAT16, conv1d=True)


def test_int8_load(cuda_ops: dict[str, Any], peak_bytes: Peak) -> None:
    source = torch.randn(N, K, dtype=torch.bfloat16)

    def load() -> tuple[Any, ...]:
        value = source.clone()
        half = value.contiguous().to(dtype=torch.float16)  # bitsandbytes/nn/modules.py, Int8Params._quantize
        return value, half, *cuda_ops["bitsandbytes::int8_vectorwise_quant"](half)[:2]

    peak, _ = peak_bytes(load)
    quantization = Quantization(Scheme.INT8)
    stored = storage_bytes(quantization, (N, K), DType.BFLOAT16).total_bytes
    assert peak - stored == load_transient_bytes(quantization, (N, K), DType.BFLOAT16)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
def test_fp8_load(peak_bytes: Peak, dtype: DType) -> None:
    config = FineGrainedFP8Config(weight_block_size=(64, 64))
    quantizer = type("Quantizer", (), {"quantization_config": config})()
    source = torch.randn(N, K, dtype=_torch(dtype))

    def load() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = source.clone()
        return value, finegrained_fp8.Fp8Quantize(quantizer).convert({"a.weight": value})

    peak, (_, converted) = peak_bytes(load)
    quantization = Quantization(Scheme.FP8, block_shape=(64, 64))
    stored = storage_bytes(quantization, (N, K), dtype).total_bytes
    assert stored == sum(tensor.nbytes for tensor in converted.values())
    assert peak - stored == load_transient_bytes(quantization, (N, K), dtype)


@pytest.mark.parametrize("scheme", [Scheme.GPTQ, Scheme.AWQ])
def test_kernels_that_are_not_known_are_refused(scheme: Scheme) -> None:
    quantization = Quantization(scheme)
    assert load_transient_bytes(quantization, (128, 128), DType.FLOAT16) == 0
    with pytest.raises(UnsupportedError):
        forward_temporary_bytes(quantization, (128, 128), 8, DType.FLOAT16)
    with pytest.raises(UnsupportedError):
        backward_temporary_bytes(quantization, (128, 128), DType.FLOAT16, DType.FLOAT16)
    with pytest.raises(UnsupportedError):
        saves_input(quantization)
    with pytest.raises(UnsupportedError):
        forward_temporary_bytes(Quantization(Scheme.FP8), (128, 128), 8, DType.BFLOAT16)
