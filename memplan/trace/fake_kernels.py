"""Shapes of ops whose own fake kernel refuses or cannot know what a GPU does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Kernel = Callable[[Any, Any, Any], Any]


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """The meta kernel (torch/_meta_registrations.py, 2.13) takes bfloat16 only; CUDA falls back to a loop of gemms."""
    first, second = args[0], args[1]
    if first.dtype == torch.bfloat16:
        return func(*args, **kwargs)
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    if first.dim() == 2 and second.dim() == 2:
        shape = (offsets.shape[0], first.shape[0], second.shape[1])
    elif first.dim() == 2:
        shape = (first.shape[0], second.shape[-1])
    elif second.dim() == 2:
        shape = (first.shape[1], second.shape[1])
    else:
        shape = (first.shape[0], first.shape[1], second.shape[2])
    return torch.empty(shape, dtype=first.dtype, device=first.device)


KERNELS: dict[Any, Kernel] = {torch.ops.aten._grouped_mm.default: _grouped_mm}
