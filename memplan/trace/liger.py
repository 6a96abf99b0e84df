"""Liger's kernels in a trace: the library's own Python code runs and allocates, its Triton kernels do nothing.

Triton compiles for a GPU and launches on pointers, and fakes have neither. A launch allocates nothing, so it is left out;
what liger_kernel's autograd functions allocate and save around it is real.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from memplan.errors import UnsupportedError
from memplan.trace import versions
from memplan.trace.spec import TraceSpec

# What TrainingArguments.liger_kernel_config switches; the functions of liger_kernel/transformers/monkey_patch.py take these.
_KERNELS = ("rope", "rms_norm", "swiglu", "geglu", "layer_norm")
# What the last trace replaced: module, name, value before.
_replaced: list[tuple[Any, str, Any]] = []


def install(spec: TraceSpec) -> None:
    """Makes liger_kernel importable and runnable on fakes.

    Raises:
        UnavailableError: liger-kernel or triton is missing, or of a version that no trace was tested with.
    """
    versions.check_package("liger-kernel", "0.8.5", "0.8.6", extra="liger-kernel==0.8.5")
    versions.check_package("triton", "3.4", "4.0", extra="triton")
    silence_triton()
    # It looks for a GPU when it is imported, and autocast in its functions is of the device that it found.
    import_module("liger_kernel.utils").infer_device = lambda: "cuda"  # type: ignore[attr-defined]
    # Kernels are launched with their device made current, which asks the driver.
    torch.cuda.device = lambda *_: nullcontext()
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=spec.multiprocessors)


def silence_triton() -> None:
    """Launches of Triton's kernels do nothing from here on."""
    jit, autotuner = import_module("triton.runtime.jit"), import_module("triton.runtime.autotuner")
    for kernel in (jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics):
        kernel.run = _launch_nothing


def _launch_nothing(*_: Any, **__: Any) -> None:
    return None


def apply(spec: TraceSpec, model: nn.Module) -> None:
    """What Trainer does to the model when training starts (transformers/integrations/liger.py).

    Raises:
        UnsupportedError: Liger has no kernels for the model, which Trainer would then run without.
    """
    from transformers.integrations.liger import apply_liger_kernel

    known = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    model_type = str(spec.model_config["model_type"])
    if model_type not in known or spec.task != "causal-lm":
        raise UnsupportedError(
            f"liger-kernel has no kernels for {model_type} under a {spec.task} head", code="not_traceable"
        )
    kernels = dict.fromkeys(_KERNELS, spec.liger_kernels)
    base: Any = model
    modeling = sys.modules[type(base.get_base_model() if hasattr(base, "get_base_model") else base).__module__]
    before = dict(vars(modeling))
    apply_liger_kernel(
        model, {**kernels, "cross_entropy": False, "fused_linear_cross_entropy": spec.loss == "fused_linear"}
    )
    _replaced.extend((modeling, name, before[name]) for name in before if getattr(modeling, name) is not before[name])


def restore() -> None:
    """Takes out of transformers' modules what `apply` put into them: a worker traces one spec after another."""
    while _replaced:
        module, name, value = _replaced.pop()
        setattr(module, name, value)


def guesses(spec: TraceSpec) -> list[tuple[str, str, Any]]:
    """Values that Liger's functions ask for and that follow from the batch: how many tokens have a label."""
    return [("liger_kernel/ops/fused_linear_cross_entropy.py", "", spec.batch * spec.sequence)]
