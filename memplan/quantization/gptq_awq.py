"""Storage of GPTQ and AWQ linear layers, as gptqmodel registers their buffers when a checkpoint is loaded.

Both pack several elements into one int32. These are buffers, not parameters: `model.parameters()` does not see them,
so nothing casts or freezes them. A kernel may repack them after the load (Marlin, ExLlama); the bytes below are those
of the plain layout, which the torch and Triton kernels, the only ones that train, keep.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.quantization.scheme import Quantization, StoredTensor

_PACK_BITS = 32  # pack_dtype=torch.int32


def stored_tensors_gptq(quantization: Quantization, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    """Buffers of one GPTQ layer: elements packed along the input features.

    Args:
        quantization: scheme gptq.
        shape: of the weight, [out_features, in_features].

    Raises:
        InvalidValueError: the weight is not a matrix, or does not fill whole int32 words.

    Source: gptqmodel/nn_modules/qlinear/__init__.py, GPTQQuantLinear._register_gptq_buffers (gptqmodel 7).
    """
    out_features, in_features = _matrix(shape)
    for key, size in (("in_features", in_features), ("out_features", out_features)):
        if size % _PACK_BITS:
            raise InvalidValueError(key, size, f"a multiple of {_PACK_BITS} for gptq")
    groups = -(-in_features // _group_size(quantization, in_features))
    return (
        StoredTensor("qweight", (in_features // _PACK_BITS * quantization.bits, out_features), DType.INT32, "data"),
        StoredTensor("qzeros", (groups, out_features // _PACK_BITS * quantization.bits), DType.INT32, "state"),
        StoredTensor("scales", (groups, out_features), DType.FLOAT16, "state"),
        StoredTensor("g_idx", (in_features,), DType.INT32, "state"),
    )


def stored_tensors_awq(quantization: Quantization, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    """Buffers of one AWQ layer in the `gemm` format: elements packed along the output features, no `g_idx`.

    Args:
        quantization: scheme awq.
        shape: of the weight, [out_features, in_features].

    Raises:
        InvalidValueError: the weight is not a matrix, or does not fill whole words and groups.

    Source: awq/modules/linear/gemm.py, WQLinear_GEMM (AutoAWQ), and gptqmodel/nn_modules/qlinear/__init__.py,
    AWQuantLinear (gptqmodel 7), which register the same buffers.
    """
    out_features, in_features = _matrix(shape)
    per_word = _PACK_BITS // quantization.bits
    group_size = _group_size(quantization, in_features)
    if out_features % per_word:
        raise InvalidValueError("out_features", out_features, f"a multiple of {per_word} for awq")
    if in_features % group_size:
        raise InvalidValueError("in_features", in_features, f"a multiple of the group size {group_size} for awq")
    groups = in_features // group_size
    return (
        StoredTensor("qweight", (in_features, out_features // per_word), DType.INT32, "data"),
        StoredTensor("qzeros", (groups, out_features // per_word), DType.INT32, "state"),
        StoredTensor("scales", (groups, out_features), DType.FLOAT16, "state"),
    )


def _group_size(quantization: Quantization, in_features: int) -> int:
    return in_features if quantization.group_size == -1 else quantization.group_size


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise InvalidValueError("shape", shape, "[out_features, in_features] for gptq and awq")
    return shape[0], shape[1]
