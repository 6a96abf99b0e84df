"""bitsandbytes quantization on fakes: real modules and real autograd functions, with plain parameters inside.

`Params4bit` and `Int8Params` are tensor subclasses, which a FakeTensor cannot become. The modules run unmodified on a
plain frozen `Parameter` that carries the same attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memplan.trace.spec import TraceSpec

_PARAMS_4BIT = ("blocksize", "compress_statistics", "quant_type", "quant_storage")


class QuantizedLoader:
    """Quantizes linear layers one by one, as transformers' bitsandbytes quantizers do at load."""

    def __init__(self, spec: TraceSpec) -> None:
        from transformers import BitsAndBytesConfig
        from transformers.quantizers.auto import AutoHfQuantizer

        self.bits = 4 if spec.load_in_4bit else 8
        # What `from_pretrained(dtype=...)` brings to the GPU before it is quantized; `quant_state.dtype` remembers it.
        self.load_dtype = getattr(torch, spec.dtype)
        config = BitsAndBytesConfig(
            load_in_4bit=spec.load_in_4bit,
            load_in_8bit=spec.load_in_8bit,
            bnb_4bit_quant_type=spec.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=spec.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=getattr(torch, spec.bnb_4bit_compute_dtype) if spec.bnb_4bit_compute_dtype else None,
            bnb_4bit_quant_storage=getattr(torch, spec.bnb_4bit_quant_storage),
            llm_int8_skip_modules=list(spec.llm_int8_skip_modules) if spec.llm_int8_skip_modules is not None else None,
            llm_int8_threshold=spec.llm_int8_threshold,
        )
        self.config = config
        self.quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)

    @classmethod
    def for_spec(cls, spec: TraceSpec) -> QuantizedLoader | None:
        """The loader that the spec asks for, or None."""
        return cls(spec) if spec.load_in_4bit or spec.load_in_8bit else None

    def replace_modules(self, model: nn.Module, device_map: dict[str, str] | None) -> None:
        """Puts `Linear4bit` or `Linear8bitLt` in place of the linear layers that transformers would replace.

        `from_pretrained` does so where the dtype that it loads in is torch's default: the biases of the new layers have it.
        """
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.load_dtype)
        try:
            self.quantizer._process_model_before_weight_loading(model, device_map=device_map)
        finally:
            torch.set_default_dtype(default)
        model.config.quantization_config = self.config

    def handles(self, module: nn.Module, leaf: str) -> bool:
        """Whether this parameter is stored quantized."""
        import bitsandbytes as bnb

        kind = bnb.nn.Linear4bit if self.bits == 4 else bnb.nn.Linear8bitLt
        return leaf == "weight" and isinstance(module, kind)

    def quantize(self, module: Any, leaf: str, parameter: Any, device: torch.device) -> nn.Parameter:
        """Loads the 16- or 32-bit weight on the device, quantizes it there, and drops it."""
        weight = torch.empty(parameter.shape, dtype=self.load_dtype, device=device)
        if self.bits == 4:
            return _packed(weight, {name: getattr(parameter, name) for name in _PARAMS_4BIT}, module)
        return _in_rows(weight.to(torch.float16))

    def finish(self, model: nn.Module) -> None:
        """Marks the model as quantized, which PEFT and Trainer look for."""
        self.quantizer._process_model_after_weight_loading(model)
        model.is_quantized = True
        model.config._is_quantized = True
        model.hf_quantizer = self.quantizer
        model.quantization_method = self.quantizer.quantization_config.quant_method


def _packed(weight: torch.Tensor, options: Mapping[str, Any], module: Any = None) -> nn.Parameter:
    """`weight` in 4 bits, as `Params4bit._quantize` leaves it."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, **options)
    done: Any = nn.Parameter(packed, requires_grad=False)
    for name, value in options.items():
        setattr(done, name, value)
    done.quant_state, done.bnb_quantized, done.module = state, True, module
    if module is not None:
        module.quant_state = state
    return done


def _in_rows(weight: torch.Tensor) -> nn.Parameter:
    """A float16 `weight` in 8 bits, as `Int8Params._quantize` leaves it."""
    quantized, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weight, 0.0)
    done: Any = nn.Parameter(quantized, requires_grad=False)
    done.CB, done.SCB, done.has_fp16_weights = done.data, scales, False
    return done


class _Params4bit:
    """`Params4bit` of a weight in host memory, until it goes to the device (bitsandbytes/nn/modules.py)."""

    def __init__(self, data: torch.Tensor, module: Any = None, **options: Any) -> None:
        self.data = data.detach()
        self.module = module
        defaults = {"blocksize": 64, "compress_statistics": True, "quant_type": "fp4", "quant_storage": torch.uint8}
        self.options = {name: options.get(name) or value for name, value in defaults.items()}
        self.options["compress_statistics"] = options.get("compress_statistics", True)

    def to(self, device: torch.device | str) -> nn.Parameter:
        weight = self.data.contiguous().to(device)
        return _packed(weight, self.options, self.module)


class _Int8Params:
    """`Int8Params`, likewise."""

    def __init__(self, data: torch.Tensor, **_: Any) -> None:
        self.data = data.detach()

    def to(self, device: torch.device | str) -> nn.Parameter:
        weight = self.data.contiguous().to(device=device, dtype=torch.float16)
        return _in_rows(weight)


@contextmanager
def quantizing() -> Iterator[None]:
    """Lets PEFT quantize weights anew by bitsandbytes' classes of parameters, which fakes cannot become."""
    from bitsandbytes import nn as classes

    whole = classes.Params4bit, classes.Int8Params
    classes.Params4bit, classes.Int8Params = _Params4bit, _Int8Params
    try:
        yield
    finally:
        classes.Params4bit, classes.Int8Params = whole


@contextmanager
def quantized_hidden(model: nn.Module) -> Iterator[None]:
    """Keeps packed weights out of `model.parameters()`.

    `prepare_model_for_kbit_training` casts 16-bit parameters up unless their class is called `Params4bit`, which fakes cannot
    be; packed weights can be stored in 16 bits (`bnb_4bit_quant_storage`).
    """
    whole = model.parameters
    model.parameters = lambda recurse=True: (
        parameter for parameter in whole(recurse) if not hasattr(parameter, "bnb_quantized")
    )
    try:
        yield
    finally:
        del model.parameters


def install_dequantization() -> None:
    """Lets PEFT dequantize weights, which it knows by the name of a class that fakes do not have.

    Source: peft/utils/integrations.py, dequantize_module_weight and dequantize_bnb_weight (PEFT 0.21.2).
    """
    import peft
    from bitsandbytes import functional

    assert peft
    integrations: Any = sys.modules["peft.utils.integrations"]
    original = integrations.dequantize_module_weight

    def dequantize_bnb_weight(weight: Any, state: Any = None) -> torch.Tensor:
        quant_state = getattr(weight, "quant_state", None)
        if quant_state is not None:
            found: torch.Tensor = functional.dequantize_4bit(weight.data, quant_state)
            return found
        scales = state.SCB if state.SCB is not None else weight.SCB
        dequantized: torch.Tensor = functional.int8_vectorwise_dequant(weight.data, scales)
        return dequantized

    def dequantize_module_weight(module: Any) -> torch.Tensor:
        weight = module.weight
        if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):
            return dequantize_bnb_weight(weight, getattr(module, "state", None))
        found: torch.Tensor = original(module)
        return found

    if getattr(original, "is_for_fakes", False):
        return
    dequantize_module_weight.is_for_fakes = True  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("peft."):
            for function in (dequantize_module_weight, dequantize_bnb_weight):
                if hasattr(module, function.__name__):
                    setattr(module, function.__name__, function)


def state_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that quantization keeps beside the packed weights."""
    found: list[tuple[str, torch.Tensor]] = []
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found += [(f"{name}.{key}", value) for key, value in _quant_state_tensors(state)]
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            found.append((f"{name}.SCB", scales))
    return found


def _quant_state_tensors(state: Any) -> list[tuple[str, torch.Tensor]]:
    tensors = [(key, getattr(state, key, None)) for key in ("absmax", "code", "offset")]
    nested = getattr(state, "state2", None)
    if nested is not None:
        tensors += [(f"nested_{key}", getattr(nested, key, None)) for key in ("absmax", "code")]
    return [(key, value) for key, value in tensors if isinstance(value, torch.Tensor)]
