"""In which numbers a recipe runs: quantization, precision policy, and the dtypes of loading, autocast and 4-bit products.

What a method implies for quantization, quantization for precision, and precision for the dtypes.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.cards import ResolvedModel
from memplan.catalog.gpus import Gpu
from memplan.dtypes import DType, parse_dtype
from memplan.errors import InputError, InvalidValueError
from memplan.filler import USER, Filler
from memplan.methods.targets import compile_pattern
from memplan.quantization import Quantization, Scheme
from memplan.quantization_config import quantization_of
from memplan.recipe import Precision, Recipe


def quantization_and_checkpoint_dtype(
    recipe: Recipe, method: str, model: ResolvedModel, filler: Filler
) -> tuple[Quantization | None, DType]:
    """The scheme (its compute dtype still open) and the checkpoint's own dtype."""
    named = model.config.get("dtype") or model.config.get("torch_dtype")
    loaded_as = parse_dtype(named) if isinstance(named, str) and named != "auto" else DType.FLOAT32
    is_qlora = method == "qlora"
    is_8bit = bool(recipe.load_in_8bit)
    arrives = model.config.get("quantization_config")
    given = recipe.quantization_config or arrives
    is_4bit = recipe.load_in_4bit if recipe.load_in_4bit is not None else is_qlora and not is_8bit and not arrives
    if is_qlora and not is_4bit and not is_8bit and not given:
        raise InvalidValueError("load_in_4bit", False, "qlora stores the base in 4 bits; use method = lora")
    if is_4bit and is_8bit:
        raise InputError("load_in_4bit and load_in_8bit exclude each other")
    if (is_4bit or is_8bit) and recipe.quantization_config:
        raise InputError("quantization_config and load_in_4bit / load_in_8bit are two ways to say one thing: give one")
    skip = recipe.llm_int8_skip_modules
    for pattern in skip or ():
        compile_pattern("llm_int8_skip_modules", pattern)
    if skip is not None and (is_4bit or is_8bit):
        filler.fill("llm_int8_skip_modules", skip, USER)
    if is_4bit:
        why = "method qlora" if recipe.load_in_4bit is None else USER
        filler.values["load_in_4bit"], filler.sources["load_in_4bit"] = True, why
        paper = "QLoRA, arXiv 2305.14314"
        quant_type = filler.fill(
            "bnb_4bit_quant_type", "nf4" if is_qlora else "fp4", paper if is_qlora else "BitsAndBytesConfig"
        )
        nested = filler.fill("bnb_4bit_use_double_quant", is_qlora, paper if is_qlora else "BitsAndBytesConfig")
        storage = filler.fill("bnb_4bit_quant_storage", "uint8", "BitsAndBytesConfig")
        scheme = Scheme(quant_type)
        return (
            Quantization(scheme, double_quant=nested, quant_storage=parse_dtype(storage), skip_modules=skip),
            loaded_as,
        )
    if is_8bit:
        filler.values["load_in_8bit"], filler.sources["load_in_8bit"] = True, USER
        return Quantization(Scheme.INT8, skip_modules=skip), loaded_as
    if given:
        found = quantization_of(given)
        filler.values["quantization_config"] = dict(given)
        filler.sources["quantization_config"] = USER if recipe.quantization_config else "the checkpoint's config"
        return found, loaded_as
    return None, loaded_as


def precision_policy(recipe: Recipe, loaded_as: DType, quantization: Quantization | None, filler: Filler) -> Precision:
    """The policy of mixed precision: by default as the weights are loaded, or autocast over a quantized base."""
    if quantization is not None:
        default, source = Precision.AMP, "default: quantized bases are trained under autocast"
    else:
        dtype = parse_dtype(filler.said["dtype"]) if recipe.dtype else loaded_as
        if dtype is DType.FLOAT32:
            default, source = Precision.FP32, "weights are float32"
        else:
            default, source = Precision.PURE, f"weights are {dtype}"
    return Precision(filler.fill("precision", default, source))


def weights_dtype(
    recipe: Recipe,
    method: str,
    precision: Precision,
    loaded_as: DType,
    quantization: Quantization | None,
    filler: Filler,
) -> DType:
    """The dtype in which the base model is loaded.

    Raises:
        InvalidValueError: the precision needs another one.
    """
    half = loaded_as if loaded_as.is_half else DType.BFLOAT16
    wants_half = precision in (Precision.PURE, Precision.MASTER, Precision.MASTER_FP32_GRADS)
    if precision is Precision.FP32:
        default, source = DType.FLOAT32, "precision fp32"
    elif precision is Precision.AMP and quantization is None and method == "full":
        default, source = DType.FLOAT32, "precision amp keeps float32 weights"
    elif wants_half:
        default, source = half, f"precision {precision} keeps 16-bit weights"
    elif quantization is not None:
        default, source = half, "the checkpoint's, 16-bit under quantization"
    else:
        default, source = loaded_as, "the checkpoint's"
    dtype = parse_dtype(filler.fill("dtype", str(default), source))
    if recipe.dtype == "auto":
        filler.sources["dtype"] = "auto: the checkpoint's"
    filler.values["dtype"] = str(dtype)
    if precision is Precision.FP32 and dtype is not DType.FLOAT32 and quantization is None:
        raise InvalidValueError("dtype", str(dtype), "precision fp32 needs float32 weights")
    if wants_half and not dtype.is_half:
        raise InvalidValueError("dtype", str(dtype), f"precision {precision} needs bfloat16 or float16 weights")
    if dtype not in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        raise InvalidValueError("dtype", str(dtype), "base weights are loaded as float32, bfloat16 or float16")
    return dtype


def autocast_dtype(recipe: Recipe, precision: Precision, dtype: DType, gpu: Gpu | None, filler: Filler) -> DType | None:
    """The dtype of `torch.autocast`, or None without it.

    Raises:
        InputError: one is given without autocast.
    """
    if precision is not Precision.AMP:
        if recipe.autocast_dtype is not None:
            raise InputError("autocast_dtype is given, but only precision amp runs under autocast")
        return None
    old_gpu = gpu is not None and gpu.compute_capability is not None and gpu.compute_capability < (8, 0)
    if dtype is DType.FLOAT16:
        default, source = DType.FLOAT16, "weights are float16"
    elif old_gpu:
        default, source = DType.FLOAT16, "this GPU has no bfloat16 units"
    else:
        default, source = DType.BFLOAT16, "default"
    return parse_dtype(filler.fill("autocast_dtype", str(default), source))


def with_compute_dtype(
    recipe: Recipe, method: str, quantization: Quantization | None, half: DType, filler: Filler
) -> Quantization | None:
    """`quantization` with `bnb_4bit_compute_dtype`, where it has one; a config that says how it is quantized says that too."""
    is_4bit = quantization is not None and quantization.scheme.is_4bit_bitsandbytes
    if quantization is None or not is_4bit or "quantization_config" in filler.values:
        return quantization
    default, source = (half, "the autocast dtype") if method == "qlora" else (DType.FLOAT32, "BitsAndBytesConfig")
    compute = parse_dtype(filler.fill("bnb_4bit_compute_dtype", str(default), source))
    return replace(quantization, compute_dtype=compute)
