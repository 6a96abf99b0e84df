"""Stored tensors against the objects that bitsandbytes, transformers and the documented layouts hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import FP8Linear

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.quantization import PROCESS_CODE_BOOK_BYTES, Quantization, Scheme, storage_bytes, stored_tensors

NF4 = Quantization(Scheme.NF4)
SHAPES = [(1, 1), (7, 9), (1, 64), (64, 64), (65, 1), (33, 129), (256, 300), (129, 257), (512, 130)]


def _described(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def _quant_state_tensors(packed: torch.Tensor, state: functional.QuantState) -> dict[str, torch.Tensor]:
    tensors = {"weight": packed, "weight.absmax": state.absmax, "weight.quant_map": state.code}
    if state.nested:
        tensors |= {
            "weight.nested_absmax": state.state2.absmax,
            "weight.nested_quant_map": state.state2.code,
            "weight.nested_offset": state.offset,
        }
    return tensors


def _ours(quantization: Quantization, shape: tuple[int, ...], dtype: DType = DType.BFLOAT16) -> dict[str, Any]:
    return {tensor.name: (tensor.shape, str(tensor.dtype)) for tensor in stored_tensors(quantization, shape, dtype)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("scheme", [Scheme.NF4, Scheme.FP4])
def test_4bit_equals_quantize_4bit(scheme: Scheme, double_quant: bool, shape: tuple[int, int]) -> None:
    packed, state = functional.quantize_4bit(
        torch.randn(shape, dtype=torch.bfloat16), compress_statistics=double_quant, quant_type=scheme
    )
    real = _quant_state_tensors(packed, state)
    quantization = Quantization(scheme, double_quant=double_quant)
    assert _ours(quantization, shape) == _described(real)
    size = storage_bytes(quantization, shape, DType.BFLOAT16)
    assert size.data_bytes == packed.untyped_storage().nbytes()
    assert size.total_bytes == sum(tensor.untyped_storage().nbytes() for tensor in real.values())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.sampled_from([32, 64, 128, 4096]))
def test_4bit_bytes_of_any_shape(rows: int, columns: int, double_quant: bool, blocksize: int) -> None:
    packed, state = functional.quantize_4bit(
        torch.randn(rows, columns), blocksize=blocksize, compress_statistics=double_quant, quant_type="nf4"
    )
    quantization = Quantization(Scheme.NF4, double_quant=double_quant, blocksize=blocksize)
    real = _quant_state_tensors(packed, state).values()
    size = storage_bytes(quantization, (rows, columns), DType.FLOAT32)
    assert size.total_bytes == sum(tensor.nbytes for tensor in real)
    assert size.total_block_bytes == sum(-(-tensor.nbytes // 512) * 512 for tensor in real)


@pytest.mark.parametrize("storage", ["uint8", "int8", "bfloat16", "float16", "float32", "float64"])
def test_4bit_packed_into_other_dtypes(storage: str) -> None:
    weight = torch.randn(64, 96, dtype=torch.float16)
    packed, _ = functional.quantize_4bit(weight, quant_storage=getattr(torch, storage))
    tensor = stored_tensors(replace(NF4, quant_storage=DType(storage)), (64, 96), DType.FLOAT16)[0]
    assert (tensor.shape, str(tensor.dtype)) == (tuple(packed.shape), storage)
    assert tensor.size_bytes == packed.nbytes


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_4bit_packed_shape_is_that_of_the_cuda_wrapper(
    cuda_ops: dict[str, Any], shape: tuple[int, int], storage: str
) -> None:
    quantize = cuda_ops["bitsandbytes::quantize_4bit"]
    packed, absmax = quantize(torch.empty(shape, dtype=torch.bfloat16), 64, "nf4", getattr(torch, storage))
    ours = stored_tensors(replace(NF4, quant_storage=DType(storage)), shape, DType.BFLOAT16)
    assert ours[0].shape == tuple(packed.shape)
    assert ours[1].shape == tuple(absmax.shape)


def test_no_4bit_storage_is_shared_between_layers() -> None:
    """Code books are per weight, so every storage rounds to its own block."""
    layers = [bnb.nn.Linear4bit(64, 32, compress_statistics=True, quant_type="nf4").to("cpu") for _ in range(3)]
    tensors = [
        tensor
        for layer in layers
        for tensor in _quant_state_tensors(layer.weight.data, layer.weight.quant_state).values()
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors) == 18
    source = functional.name2qmap["dynamic"]
    assert source.nbytes == PROCESS_CODE_BOOK_BYTES
    assert source.data_ptr() not in {tensor.data_ptr() for tensor in tensors}


def test_7b_projection_in_blocks() -> None:
    """Mistral's q_proj by hand: 4096 x 4096 elements, 262144 blocks of 64, 1024 nested blocks of 256."""
    size = storage_bytes(replace(NF4, double_quant=True), (4096, 4096), DType.BFLOAT16)
    assert size.data_bytes == 8_388_608
    assert size.state_bytes == 262_144 + 16 * 4 + 1024 * 4 + 256 * 4 + 4
    assert size.state_block_bytes == 262_144 + 512 + 4096 + 1024 + 512


@pytest.mark.parametrize("shape", [(32, 64), (5, 12), (1, 4)])
def test_int8_equals_int8_params_and_survives_the_first_step(shape: tuple[int, int]) -> None:
    layer = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False, threshold=6.0).to("cpu")
    loaded = {"weight": layer.weight.data, "weight.SCB": layer.weight.SCB}
    assert layer.weight.CB.data_ptr() == layer.weight.data.data_ptr()
    assert _ours(Quantization(Scheme.INT8), shape) == _described(loaded)

    layer(torch.randn(3, shape[1], dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert layer.weight.CB is None
    assert layer.state.CB.data_ptr() == layer.weight.data.data_ptr() == loaded["weight"].data_ptr()
    assert layer.state.SCB.data_ptr() == loaded["weight.SCB"].data_ptr()
    held = [value for value in vars(layer.state).values() if isinstance(value, torch.Tensor) and value.numel()]
    assert {tensor.data_ptr() for tensor in held} == {tensor.data_ptr() for tensor in loaded.values()}


@pytest.mark.parametrize("block_shape", [(128, 128), (64, 32), None])
@pytest.mark.parametrize("shape", [(256, 384), (130, 129), (1, 1)])
def test_fp8_equals_fp8_linear(shape: tuple[int, int], block_shape: tuple[int, int] | None) -> None:
    with torch.device("meta"):
        layer = FP8Linear(shape[1], shape[0], block_size=block_shape)
    quantization = Quantization(Scheme.FP8, block_shape=block_shape, pre_quantized=True)
    assert _ours(quantization, shape) == _described(dict(layer.named_parameters()))


def test_fp8_quantized_on_load_keeps_what_blocks_do_not_cover() -> None:
    quantization = Quantization(Scheme.FP8)
    assert stored_tensors(quantization, (256, 128), DType.BFLOAT16)[0].dtype is DType.FLOAT8_E4M3FN
    assert stored_tensors(quantization, (130, 128), DType.BFLOAT16)[0].dtype is DType.BFLOAT16


def test_fp8_experts_have_scales_an_expert() -> None:
    tensors = stored_tensors(Quantization(Scheme.FP8), (8, 512, 256), DType.BFLOAT16)
    assert [tensor.shape for tensor in tensors] == [(8, 512, 256), (8, 4, 2)]


@pytest.mark.parametrize(
    ("bits", "group_size", "qweight", "qzeros", "groups"),
    [
        (4, 128, (512, 11008), (32, 1376), 32),
        (8, 128, (1024, 11008), (32, 2752), 32),
        (3, 64, (384, 11008), (64, 1032), 64),
        (2, -1, (256, 11008), (1, 688), 1),
    ],
)
def test_gptq_layout(
    bits: int, group_size: int, qweight: tuple[int, int], qzeros: tuple[int, int], groups: int
) -> None:
    """Shapes as gptqmodel registers them for Llama-7B's up_proj, 4096 inputs and 11008 outputs."""
    assert _ours(Quantization(Scheme.GPTQ, bits=bits, group_size=group_size), (11008, 4096)) == {
        "qweight": (qweight, "int32"),
        "qzeros": (qzeros, "int32"),
        "scales": ((groups, 11008), "float16"),
        "g_idx": ((4096,), "int32"),
    }


def test_awq_layout() -> None:
    """Shapes as AutoAWQ registers them for Llama-7B's up_proj, 4096 inputs and 11008 outputs."""
    assert _ours(Quantization(Scheme.AWQ), (11008, 4096)) == {
        "qweight": ((4096, 1376), "int32"),
        "qzeros": ((32, 1376), "int32"),
        "scales": ((32, 11008), "float16"),
    }
    assert Quantization(Scheme.AWQ).pre_quantized


@pytest.mark.parametrize(
    "options",
    [
        {"blocksize": 100},
        {"quant_storage": DType.INT64},
        {"compute_dtype": DType.FLOAT64},
        {"scheme": Scheme.GPTQ, "bits": 5},
        {"scheme": Scheme.AWQ, "bits": 8},
        {"group_size": 0},
        {"block_shape": (0, 128)},
        {"scheme": Scheme.INT8, "double_quant": True},
    ],
)
def test_options_that_no_library_accepts(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        replace(NF4, **options)


@pytest.mark.parametrize(
    ("quantization", "shape"),
    [
        (NF4, ()),
        (NF4, (0, 64)),
        (Quantization(Scheme.INT8), (8, 16, 16)),
        (Quantization(Scheme.GPTQ), (64, 30)),
        (Quantization(Scheme.AWQ), (60, 128)),
        (Quantization(Scheme.AWQ), (64, 100)),
        (Quantization(Scheme.FP8), (64,)),
    ],
)
def test_shapes_that_a_scheme_cannot_hold(quantization: Quantization, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidValueError):
        stored_tensors(quantization, shape, DType.BFLOAT16)
