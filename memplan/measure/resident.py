"""Bytes of what stays between steps, by component, from the tensors themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from memplan.trace.in_backward import states
from memplan.trace.quantized import state_tensors
from memplan.units import round_to_block


def block_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's storage, rounded up to the allocator's 512."""
    return round_to_block(tensor.untyped_storage().nbytes())


def resident_bytes(model: nn.Module, base: set[int] | None, optimizer: Any = None) -> dict[str, int]:
    """Bytes by component; each storage counts once.

    Args:
        model: the model that trains, PEFT's wrapper included.
        base: ids of the parameters that were there before the method added its own; None where it added none.
        optimizer: whose states count as well, if given.
    """
    seen: set[int] = set()

    def total(tensors: Iterable[torch.Tensor]) -> int:
        found = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()._cdata
            if storage not in seen and not getattr(tensor, "is_paged", False):
                seen.add(storage)
                found += block_bytes(tensor)
        return found

    parameters = list(model.parameters())
    sums = {
        "weights": total(entry for entry in parameters if base is None or id(entry) in base),
        "adapters": total(entry for entry in parameters if base is not None and id(entry) not in base),
        "quantization_state": total(tensor for _, tensor in state_tensors(model)),
        "buffers": total(model.buffers()),
    }
    if optimizer is not None:
        sums["optimizer_states"] = total(_state_tensors(optimizer))
    return {key: size for key, size in sums.items() if size}


def paged_bytes(optimizer: Any) -> int:
    """Optimizer state in CUDA managed memory (bitsandbytes' paged optimizers)."""
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in _state_tensors(optimizer, every_device=True)
        if getattr(tensor, "is_paged", False)
    )


def _state_tensors(optimizer: Any, *, every_device: bool = False) -> list[torch.Tensor]:
    """Tensors of the optimizer's state where its parameter is, or anywhere (step counters live on the host)."""
    found = []
    for owner, _, value in states(optimizer):
        # Of owners known by name (AdaLomo's) all states are on the device.
        anywhere = every_device or isinstance(owner, str)
        if isinstance(value, torch.Tensor) and (anywhere or value.device == getattr(owner, "device", None)):
            found.append(value)
    return found
