"""Storage of fine-grained FP8 (DeepSeek-V3 style): e4m3 elements and one fp32 scale a block of 128 x 128."""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.quantization.scheme import Quantization, StoredTensor


def scale_shape(quantization: Quantization, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of `weight_scale_inv`: blocks by rows and columns, `()` for one scale a weight.

    Leading dimensions (experts) are kept. Raises `InvalidValueError` for a weight of fewer than two dimensions.
    """
    if len(shape) < 2:
        raise InvalidValueError("shape", shape, "[..., out_features, in_features] for fp8")
    if quantization.block_shape is None:
        return (*shape[:-2], 1, 1) if len(shape) > 2 else ()
    block_rows, block_columns = quantization.block_shape
    return (*shape[:-2], -(-shape[-2] // block_rows), -(-shape[-1] // block_columns))


def is_tileable(quantization: Quantization, shape: tuple[int, ...]) -> bool:
    """Whether whole blocks cover the weight, the condition for quantizing it while it is loaded.

    Source: transformers/integrations/finegrained_fp8.py, Fp8Quantize._quantize_one (5.23).
    """
    if quantization.block_shape is None:
        return True
    return shape[-2] % quantization.block_shape[0] == 0 and shape[-1] % quantization.block_shape[1] == 0


def stored_tensors_fp8(quantization: Quantization, shape: tuple[int, ...], dtype: DType) -> tuple[StoredTensor, ...]:
    """Parameters of one `FP8Linear`, or of one projection of `FP8Experts`.

    Args:
        quantization: scheme fp8.
        shape: of the weight, [out_features, in_features], or [experts, out_features, in_features].
        dtype: load dtype, in which a weight stays when it is quantized on load and blocks do not cover it; its unused
            scale is allocated all the same.

    Source: transformers/integrations/finegrained_fp8.py, FP8Linear, _alloc_expert_proj (5.23).
    """
    scales = StoredTensor("weight_scale_inv", scale_shape(quantization, shape), DType.FLOAT32, "state")
    stays = not quantization.pre_quantized and not is_tileable(quantization, shape)
    return StoredTensor("weight", shape, dtype if stays else DType.FLOAT8_E4M3FN, "data"), scales
