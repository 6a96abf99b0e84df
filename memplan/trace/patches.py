"""The process-global changes that let real training code run on fake CUDA tensors. Only ever applied in a worker.

Each works around one thing that fakes on a machine without a GPU do differently from a GPU; the comment says which.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import _foreach_supported_types

from memplan.trace import flash_attn, losses, quantized, sparse
from memplan.trace.attention import AttentionChooser
from memplan.trace.spec import TraceSpec

# Ops with a CUDA kernel and a CompositeImplicitAutograd fallback (native_functions.yaml, torch 2.13): without the CUDA
# library the fallback is taken, which allocates differently. A registered kernel keeps them one op; it never runs,
# because fakes use the meta kernel.
_FUSED_ON_CUDA = ("silu_backward", "mish_backward", "_fused_rms_norm")


def _never_called(*_args: Any, **_kwargs: Any) -> Any:
    raise AssertionError("a fake tensor reached a CUDA kernel")


class Patches:
    """Everything one spec needs. A worker that traces several specs applies one after another."""

    # The registration lasts as long as this object; registering twice is an error.
    _library: Any = None

    def __init__(self, spec: TraceSpec) -> None:
        self.spec = spec
        self.attention = AttentionChooser(spec.gpu_arch, spec.attention_backend)
        # Bytes of state in CUDA managed memory, which may be paged out to the host.
        self.host_bytes = 0

    def apply(self) -> None:
        """Applies the patches; there is no way back but the end of the process."""
        torch.autograd.set_multithreading_enabled(False).__enter__()
        self._torch()
        self._transformers()
        quantizes = self.spec.load_in_4bit or self.spec.load_in_8bit or self.spec.has_loftq
        if quantizes or _uses_bitsandbytes(self.spec.optim):
            self._bitsandbytes()
        if self.spec.peft is not None and (self.spec.load_in_4bit or self.spec.load_in_8bit):
            quantized.install_dequantization()
        losses.install(self.spec, self.attention)

    def _torch(self) -> None:
        if Patches._library is None:
            Patches._library = torch.library.Library("aten", "IMPL")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name in _FUSED_ON_CUDA:
                    Patches._library.impl(name, _never_called, "CUDA")
            # The optimizers choose foreach only for exact types.
            _foreach_supported_types.append(FakeTensor)
        torch.nn.functional.scaled_dot_product_attention = self.attention
        # torch.autocast("cuda") and GradScaler switch themselves off without a GPU.
        torch.cuda.amp.common.amp_definitely_not_available = lambda: False
        torch.cuda.get_device_capability = lambda *_: self.spec.gpu_arch.capability
        torch.cuda.is_bf16_supported = lambda *_, **__: self.spec.gpu_arch.capability[0] >= 8
        torch.cuda.current_device = lambda: 0
        # The generator's state is 16 bytes of CPU memory (torch.random.fork_rng saves it and sets it back).
        torch.cuda.get_rng_state = lambda *_, **__: torch.empty(16, dtype=torch.uint8, device="cpu")
        torch.cuda.set_rng_state = lambda *_, **__: None
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.empty_cache = lambda: None
        FakeTensor.data = property(torch._C.TensorBase.data.__get__, _set_data)
        # Copying a fake's attributes copies its mode, and every op would turn a fake of another mode into a new storage.
        FakeTensor.__deepcopy__ = _deepcopy
        # Module.to() swaps tensors in place, which FakeTensor refuses.
        torch.nn.Module._apply = _apply_by_assignment

    def _transformers(self) -> None:
        import transformers
        from transformers.utils import import_utils

        # transformers takes fakes for tracing under torch.export and then builds masks that training never builds.
        import_utils.is_fake_tensor = lambda _: False
        transformers.utils.logging.set_verbosity_error()
        if self.spec.peft is not None and self.spec.peft["peft_type"] in sparse.METHODS:
            sparse.install()
        if self.spec.attn_implementation == "flash_attention_2":
            flash_attn.install()

    def _bitsandbytes(self) -> None:
        from bitsandbytes import functional
        from bitsandbytes.optim import optimizer

        # Maps are cached by device, and belong to the fake mode of one trace.
        functional.name2qmap.clear()
        # The quantization map is computed with 254 .item() calls; its 256 values do not matter here.
        functional.create_dynamic_map = lambda *_, **__: torch.empty(256, dtype=torch.float32)
        # The update kernels work in place through raw pointers and allocate nothing.
        functional.optimizer_update_8bit_blockwise = lambda *_, **__: None
        functional.optimizer_update_32bit = lambda *_, **__: None
        functional.is_on_gpu = lambda *_, **__: True
        # Paged state is CUDA managed memory outside torch's allocator: counted as host memory.
        functional.get_paged = self._paged
        functional.fill = lambda *_, **__: None
        functional.prefetch_tensor = lambda *_, **__: None
        optimizer.sync_gpu = lambda *_: None

    def _paged(self, *shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        tensor.is_paged = True
        tensor.page_deviceid = 0
        self.host_bytes += tensor.numel() * tensor.element_size()
        return tensor


def _set_data(tensor: FakeTensor, value: FakeTensor) -> None:
    """`tensor.data = value`, device included: FakeTensor keeps the device it was made with."""
    torch._C.TensorBase.data.__set__(tensor, value)
    tensor.fake_device = value.device


def _deepcopy(tensor: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
    """`copy.deepcopy(tensor)` as `Parameter` does it: a clone."""
    if id(tensor) in memo:
        return memo[id(tensor)]
    with torch.no_grad():
        copied: torch.Tensor = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, tensor.requires_grad)
    else:
        copied.requires_grad_(tensor.requires_grad)
    copy_attributes(tensor, copied)
    if hasattr(tensor, "quant_state"):
        copied.quant_state = copy.deepcopy(tensor.quant_state)  # bitsandbytes/nn/modules.py, Params4bit.__deepcopy__
    memo[id(tensor)] = copied
    return copied


def _apply_by_assignment(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """`torch.nn.Module._apply` with parameters replaced instead of swapped (torch/nn/modules/module.py, 2.13)."""
    if recurse:
        for child in module.children():
            child._apply(fn)
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            applied = fn(parameter)
        if applied is parameter:
            continue
        replaced = torch.nn.Parameter(applied, parameter.requires_grad)
        copy_attributes(parameter, replaced)
        if parameter.grad is not None:
            replaced.grad = fn(parameter.grad)
        module._parameters[key] = replaced
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = fn(buffer)
    return module


def copy_attributes(source: torch.Tensor, target: torch.Tensor) -> None:
    """Python attributes that libraries hang on parameters, without those that make a fake tensor a fake."""
    for key, value in source.__dict__.items():
        target.__dict__.setdefault(key, value)


def _uses_bitsandbytes(optim: str) -> bool:
    """Whether Trainer builds this optimizer with bitsandbytes (`_get_bitsandbytes_optimizer`)."""
    return any(part in optim for part in ("bnb", "8bit", "paged", "lion", "ademamix"))
