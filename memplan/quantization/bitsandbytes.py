"""Storage of bitsandbytes 0.50: `Params4bit` (nf4, fp4) and `Int8Params` (LLM.int8).

No tensor below is shared between two weights, so each counts as its own allocator block:

- `quant_state.code` is built anew for every weight: `get_4bit_type` ends in `torch.tensor(data, device=device)`
  (bitsandbytes/functional.py).
- `quant_state.state2.code` is a copy for every weight: `code.to(A.device, copy=True)` in `quantize_blockwise`. The
  process keeps one more as the source of those copies, see `PROCESS_CODE_BOOK_BYTES`.

With double quantization a weight is six storages, of which at least four (code books, offset, nested absmax of a small
projection) cost a whole 512-byte block for a few bytes.
"""

from __future__ import annotations

from math import prod
from operator import index

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.quantization.scheme import Quantization, StoredTensor

# bitsandbytes/functional.py, quantize_4bit: the absmax is quantized by quantize_blockwise(..., blocksize=256), and
# matmul_4bit refuses any other value.
NESTED_BLOCKSIZE = 256

CODE_BOOK_ELEMENTS_4BIT = 16  # bitsandbytes/functional.py, get_4bit_type
CODE_BOOK_ELEMENTS_8BIT = 256  # bitsandbytes/functional.py, create_dynamic_map

# bitsandbytes/functional.py: name2qmap["dynamic"] (fp32) stays on the device once anything was double quantized there.
PROCESS_CODE_BOOK_BYTES = CODE_BOOK_ELEMENTS_8BIT * 4


def absmax_blocks(quantization: Quantization, shape: tuple[int, ...]) -> int:
    """Blocks of `blocksize` elements that a weight of `shape` has, the last one possibly short."""
    return -(-prod(map(index, shape)) // quantization.blocksize)


def stored_tensors_4bit(quantization: Quantization, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    """Storages of one `Params4bit` on a CUDA device.

    Args:
        quantization: scheme nf4 or fp4.
        shape: of the weight, [out_features, in_features].

    Source: bitsandbytes/backends/cuda/ops.py, quantize_4bit, and bitsandbytes/functional.py, quantize_4bit (0.50.2).
    The packed tensor has `(n + 1) // (2 * itemsize)` elements, so with a wide `quant_storage` and a size that does not
    divide it, CUDA allocates less than all the elements need.
    """
    elements = prod(map(index, shape))
    blocks = absmax_blocks(quantization, shape)
    packed = (elements + 1) // (2 * quantization.quant_storage.itemsize_bytes)
    data = StoredTensor("weight", (packed, 1), quantization.quant_storage, "data")
    code = StoredTensor("weight.quant_map", (CODE_BOOK_ELEMENTS_4BIT,), DType.FLOAT32, "state")
    if not quantization.double_quant:
        return data, StoredTensor("weight.absmax", (blocks,), DType.FLOAT32, "state"), code
    return (
        data,
        StoredTensor("weight.absmax", (blocks,), DType.UINT8, "state"),
        code,
        StoredTensor("weight.nested_absmax", (-(-blocks // NESTED_BLOCKSIZE),), DType.FLOAT32, "state"),
        StoredTensor("weight.nested_quant_map", (CODE_BOOK_ELEMENTS_8BIT,), DType.FLOAT32, "state"),
        StoredTensor("weight.nested_offset", (), DType.FLOAT32, "state"),
    )


def stored_tensors_int8(shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    """Storages of one `Int8Params` with `has_fp16_weights=False`.

    `weight.CB` and, after the first forward, `state.CB` are the same storage as `weight.data`: `init_8bit_state` moves
    the references and `Linear8bitLt.forward` assigns `weight.data = state.CB` (bitsandbytes/nn/modules.py, 0.50.2).
    `MatmulLtState` holds no further copy of a frozen weight.

    Raises:
        InvalidValueError: the weight is not a matrix.
    """
    if len(shape) != 2:
        raise InvalidValueError("shape", shape, "[out_features, in_features] for int8")
    return (
        StoredTensor("weight", shape, DType.INT8, "data"),
        StoredTensor("weight.SCB", (shape[0],), DType.FLOAT32, "state"),
    )
