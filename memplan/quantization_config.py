"""A `quantization_config` as transformers writes it, read into a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from memplan.dtypes import parse_dtype
from memplan.errors import InvalidValueError
from memplan.methods.targets import compile_pattern
from memplan.quantization import Quantization, Scheme

_BITS_4_TYPES = (Scheme.NF4, Scheme.FP4)


def _check_quantization(config: Mapping[str, Any]) -> None:
    def refuse(key: str, allowed: str) -> NoReturn:
        raise InvalidValueError(f"quantization_config.{key}", config[key], allowed)

    for key in ("modules_to_not_convert", "llm_int8_skip_modules"):
        if config.get(key) and not is_names(config[key]):
            refuse(key, "a list of module names")
        for pattern in config.get(key) or ():
            compile_pattern(f"quantization_config.{key}", pattern)
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if key in config and not isinstance(config[key], str):
            refuse(key, "a dtype's name such as bfloat16")
    if config.get("bnb_4bit_quant_type", "fp4") not in [str(scheme) for scheme in _BITS_4_TYPES]:
        refuse("bnb_4bit_quant_type", "nf4 or fp4")
    for key in ("bits", "group_size"):
        if key in config and (isinstance(config[key], bool) or not isinstance(config[key], int)):
            refuse(key, "an integer")
    block = config.get("weight_block_size")
    is_pair = isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int for size in block)
    if block is not None and not is_pair:
        refuse("weight_block_size", "two integers, or null")


def quantization_of(config: Mapping[str, Any]) -> Quantization:
    """The scheme in a `quantization_config` as transformers writes it.

    Raises:
        InvalidValueError: a method that memplan has no storage rule for, or a value of the wrong kind.
    """
    if not isinstance(config, Mapping):
        raise InvalidValueError("quantization_config", config, "an object as transformers writes it")
    _check_quantization(config)
    name = str(config.get("quant_method") or "").lower()
    skip = config.get("modules_to_not_convert") or config.get("llm_int8_skip_modules")
    skip_modules = tuple(skip) if skip else None
    if name in ("gptq", "awq"):
        return Quantization(
            Scheme(name),
            bits=config.get("bits", 4),
            group_size=config.get("group_size", 128),
            skip_modules=skip_modules,
        )
    if name == "fp8":
        block = config.get("weight_block_size", (128, 128))
        return Quantization(
            Scheme.FP8, block_shape=tuple(block) if block else None, skip_modules=skip_modules, pre_quantized=True
        )
    if name == "bitsandbytes" or config.get("load_in_4bit") or config.get("load_in_8bit"):
        if config.get("load_in_8bit") or config.get("_load_in_8bit"):
            return Quantization(Scheme.INT8, skip_modules=skip_modules)
        return Quantization(
            Scheme(config.get("bnb_4bit_quant_type", "fp4")),
            double_quant=bool(config.get("bnb_4bit_use_double_quant")),
            quant_storage=parse_dtype(config.get("bnb_4bit_quant_storage", "uint8")),
            compute_dtype=parse_dtype(config.get("bnb_4bit_compute_dtype", "float32")),
            skip_modules=skip_modules,
        )
    raise InvalidValueError("quantization_config", dict(config), "quant_method must be bitsandbytes, gptq, awq or fp8")


def is_names(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)
