"""From a weight to the bytes that its quantized form occupies."""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.quantization.bitsandbytes import stored_tensors_4bit, stored_tensors_int8
from memplan.quantization.fp8 import stored_tensors_fp8
from memplan.quantization.gptq_awq import stored_tensors_awq, stored_tensors_gptq
from memplan.quantization.scheme import Quantization, Scheme, StorageBytes, StoredTensor


def stored_tensors(quantization: Quantization, shape: tuple[int, ...], dtype: DType) -> tuple[StoredTensor, ...]:
    """Every storage that one quantized weight holds on the device, none of them shared with another weight.

    Args:
        quantization: the scheme and its options.
        shape: of the weight before quantization, [out_features, in_features]. A GPT-2 `Conv1D` is transposed by
            transformers first, so its shape is given as [out, in] too.
        dtype: load dtype of the checkpoint's weights.

    Raises:
        InvalidValueError: a shape that the scheme cannot hold.
    """
    if not shape or min(shape) <= 0:
        raise InvalidValueError("shape", shape, "positive sizes")
    match quantization.scheme:
        case Scheme.NF4 | Scheme.FP4:
            return stored_tensors_4bit(quantization, shape)
        case Scheme.INT8:
            return stored_tensors_int8(shape)
        case Scheme.FP8:
            return stored_tensors_fp8(quantization, shape, dtype)
        case Scheme.GPTQ:
            return stored_tensors_gptq(quantization, shape)
        case Scheme.AWQ:
            return stored_tensors_awq(quantization, shape)


def storage_bytes(quantization: Quantization, shape: tuple[int, ...], dtype: DType) -> StorageBytes:
    """Bytes of `stored_tensors`, split into data and quantization state, as elements and as allocator blocks."""
    tensors = stored_tensors(quantization, shape, dtype)
    data = [tensor for tensor in tensors if tensor.role == "data"]
    state = [tensor for tensor in tensors if tensor.role == "state"]
    return StorageBytes(
        data_bytes=sum(tensor.size_bytes for tensor in data),
        state_bytes=sum(tensor.size_bytes for tensor in state),
        data_block_bytes=sum(tensor.block_bytes for tensor in data),
        state_block_bytes=sum(tensor.block_bytes for tensor in state),
    )
