"""Random weights on the device, brought there the way `from_pretrained` does it, without a checkpoint.

The order of allocations is the trace's (`memplan.trace.builder.load`); here the tensors are real and hold values that
train: what routing, gradient scaling and quantization do depends on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memplan.trace import builder
from memplan.trace.quantized import QuantizedLoader
from memplan.trace.spec import TraceSpec

_STD = 0.02


class RealQuantizedLoader(QuantizedLoader):
    """Quantizes real weights with bitsandbytes' own kernels (transformers/integrations/bitsandbytes.py, `convert`)."""

    def quantize(self, module: Any, leaf: str, parameter: Any, device: torch.device) -> nn.Parameter:
        """A random weight on the device, quantized there; the 16- or 32-bit one is dropped."""
        import bitsandbytes as bnb

        weight = torch.empty(parameter.shape, dtype=self.load_dtype, device=device).normal_(0, _STD)
        options = dict(parameter.__dict__)
        if self.bits == 4:
            done = bnb.nn.Params4bit(weight, requires_grad=False, **options).to(device)
        else:
            options.pop("SCB", None)
            # Through the host, as transformers does.
            done = bnb.nn.Int8Params(weight.to("cpu"), requires_grad=False, **options).to(device)
        module._is_hf_initialized = True
        found: nn.Parameter = done
        return found


def load(spec: TraceSpec, model: Any, device: torch.device, quantizer: QuantizedLoader | None) -> None:
    """Gives every parameter and buffer of a model on meta its storage and a value on `device`."""
    if spec.warmup and device.type == "cuda":
        elements = builder.warmup_bytes(model, device, quantizer) // 2
        torch.empty(elements, dtype=torch.float16, device=device, requires_grad=False)
    for _ in builder.load(model, device, quantizer):
        pass
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
        for parameter in model.parameters():
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                parameter.normal_(0, _STD)
        # Norms, rotary tables, positions: values by the model's own rules, in place.
        model.initialize_weights()
