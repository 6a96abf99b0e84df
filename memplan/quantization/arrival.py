"""The order in which one weight is quantized on the device: every tensor it borrows, and those that stay.

`temporaries.load_transients` is the highest moment of it; the allocator needs the order.

Known limits:
    A GPT-2 `Conv1D` is made contiguous first (bitsandbytes 4 bit), which is not part of the order.
    fp8's temporaries appear as one block; gptq and awq arrive as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from memplan.dtypes import DType
from memplan.quantization.bitsandbytes import CODE_BOOK_ELEMENTS_4BIT, absmax_blocks
from memplan.quantization.scheme import Quantization, Scheme
from memplan.quantization.storage import stored_tensors
from memplan.quantization.temporaries import load_transient_bytes
from memplan.units import round_to_block

# What bitsandbytes keeps once a process, made when a weight is first quantized twice; its size is not part of the weight.
PROCESS_CODE_BOOK = "process code book"


def arrival(quantization: Quantization, shape: tuple[int, ...], dtype: DType) -> Iterator[tuple[str, int]]:
    """`(name, bytes)` of each allocation, rounded to blocks, and `(name, 0)` of each free; the rest stays.

    Args:
        quantization: the scheme and its options.
        shape: of the weight, [out_features, in_features].
        dtype: load dtype.

    `(PROCESS_CODE_BOOK, 0)` stands where the process's code book is made if it does not exist.

    Sources: bitsandbytes/functional.py, quantize_4bit, get_4bit_type, quantize_blockwise; bitsandbytes/nn/modules.py,
    Int8Params._quantize (0.50.2); transformers/core_model_loading.py, which holds the loaded value until the quantized
    one is set (5.23).
    """
    stored = {tensor.name: tensor.block_bytes for tensor in stored_tensors(quantization, shape, dtype)}
    if quantization.pre_quantized:
        yield from stored.items()
        return
    value = _block(shape, dtype)
    if quantization.scheme.is_4bit_bitsandbytes:
        absmax = _block((absmax_blocks(quantization, shape),), DType.FLOAT32)
        code = _block((CODE_BOOK_ELEMENTS_4BIT,), DType.FLOAT32)
        yield "value", value
        yield "weight", stored["weight"]
        yield "absmax" if quantization.double_quant else "weight.absmax", absmax
        yield "weight.quant_map", stored["weight.quant_map"]
        # get_4bit_type: `data.div_(data.abs().max())`
        yield "code.abs()", code
        yield "code.abs().max()", _block((), DType.FLOAT32)
        yield "code.abs()", 0
        yield "code.abs().max()", 0
        if quantization.double_quant:
            yield "weight.nested_offset", stored["weight.nested_offset"]
            yield "absmax - offset", absmax
            yield PROCESS_CODE_BOOK, 0
            yield "weight.absmax", stored["weight.absmax"]
            yield "weight.nested_absmax", stored["weight.nested_absmax"]
            yield "weight.nested_quant_map", stored["weight.nested_quant_map"]
            yield "absmax - offset", 0
            yield "absmax", 0
        yield "value", 0
    elif quantization.scheme is Scheme.INT8:
        yield "value", value
        yield "half", _block(shape, DType.FLOAT16)
        yield "weight.SCB", stored["weight.SCB"]
        yield "weight", stored["weight"]
        yield "half", 0
        yield "value", 0
    else:
        yield "transients", round_to_block(load_transient_bytes(quantization, shape, dtype))
        yield from stored.items()
        yield "transients", 0


def _block(shape: tuple[int, ...], dtype: DType) -> int:
    return round_to_block(prod(shape) * dtype.itemsize_bytes)
