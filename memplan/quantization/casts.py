"""Dtypes of what is not quantized: as loaded, after `prepare_model_for_kbit_training`, and of adapters.

Sources: transformers/modeling_utils.py, _get_dtype_plan (5.23); peft/utils/other.py, prepare_model_for_kbit_training,
and peft/tuners/tuners_utils.py, cast_adapter_dtype (0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from memplan.dtypes import DType
from memplan.quantization.scheme import Quantization, Scheme

# peft/utils/constants.py, UPCAST_DTYPES, and the two 16-bit floats that cast_adapter_dtype adds.
_AUTOCAST_DTYPES = frozenset({DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2})

# LN tuning overrides _cast_adapter_dtype with nothing (peft/tuners/ln_tuning/model.py): it trains copies of norms.
_PEFT_TYPES_WITHOUT_AUTOCAST = frozenset({"LN_TUNING"})

# prepare_model_for_kbit_training skips the cast for these quantization methods; AWQ and FP8 are not among them.
_SCHEMES_WITHOUT_KBIT_CAST = frozenset({Scheme.GPTQ})


def load_dtype(
    parameter_path: str,
    dtype: DType,
    *,
    keep_in_fp32_modules: Sequence[str] = (),
    keep_in_fp32_modules_strict: Sequence[str] = (),
) -> DType:
    """Dtype in which transformers loads a parameter that is not quantized: `dtype`, unless its class keeps it in fp32.

    Args:
        parameter_path: as in `named_parameters()`.
        dtype: the `dtype` argument of `from_pretrained`.
        keep_in_fp32_modules: the model's `_keep_in_fp32_modules`, which act for float16 only (T5: "wo").
        keep_in_fp32_modules_strict: its `_keep_in_fp32_modules_strict`, which act for bfloat16 as well.

    Names are searched anywhere in the path, "*" standing for anything.
    """
    kept = list(keep_in_fp32_modules) if dtype is DType.FLOAT16 else []
    if dtype.is_half:
        kept += keep_in_fp32_modules_strict
    if any(re.search(pattern.replace("*", ".*"), parameter_path) for pattern in kept):
        return DType.FLOAT32
    return dtype


def kbit_prepare_dtype(quantization: Quantization | None, dtype: DType, *, quantized: bool = False) -> DType:
    """Dtype of a parameter after PEFT's `prepare_model_for_kbit_training`.

    Every 16-bit parameter becomes float32: norms, embeddings, the output head, biases, and expert parameters that
    bitsandbytes does not quantize. Left alone are `Params4bit` even with a 16-bit `quant_storage`, whatever is not
    16-bit, and the whole model for gptq. Buffers are not parameters, so GPTQ's and AWQ's scales stay.

    Args:
        quantization: of the model; None for a model that is not quantized, where PEFT casts all the same.
        dtype: before.
        quantized: whether the parameter is the packed weight of a quantized module.
    """
    if quantized or (quantization is not None and quantization.scheme in _SCHEMES_WITHOUT_KBIT_CAST):
        return dtype
    return DType.FLOAT32 if dtype.is_half else dtype


def quantized_module_bias_dtype(quantization: Quantization, dtype: DType, input_dtype: DType) -> DType:
    """Dtype of a bitsandbytes layer's bias from the first forward on: the layer rewrites `bias.data` in place.

    `Linear4bit.forward` casts it to the compute dtype, `Linear8bitLt.forward` to the input's
    (bitsandbytes/nn/modules.py, 0.50.2). A bias that `prepare_model_for_kbit_training` made float32 so becomes 16-bit
    again.

    Args:
        quantization: the scheme and its options.
        dtype: before the first forward.
        input_dtype: of the layer's input.
    """
    if quantization.scheme.is_4bit_bitsandbytes:
        return quantization.compute_dtype
    return input_dtype if quantization.scheme is Scheme.INT8 else dtype


def autocast_adapter_dtype(
    dtype: DType, *, autocast: bool = True, peft_type: str = "LORA", in_tuner_layer: bool = True
) -> DType:
    """Dtype of an adapter's tensor after `get_peft_model(..., autocast_adapter_dtype=autocast)`.

    Parameters and buffers that a tuner layer keeps under the adapter's name go from float16, bfloat16 and float8 to
    float32, frozen ones such as VeRA's shared projections included. Not cast: LN tuning, the projection `frod_U` of
    FRoD, and whatever no tuner layer holds, which is full copies by `modules_to_save` and prompt encoders.

    Args:
        dtype: as the method creates it, usually the dtype of the layer that it adapts.
        autocast: PEFT's argument, True by default.
        peft_type: PEFT's name of the method, e.g. "LORA".
        in_tuner_layer: whether a `BaseTunerLayer` holds the tensor.
    """
    if not autocast or not in_tuner_layer or peft_type.upper() in _PEFT_TYPES_WITHOUT_AUTOCAST:
        return dtype
    return DType.FLOAT32 if dtype in _AUTOCAST_DTYPES else dtype
