"""What a reading depends on beside the recipe: the card, the driver, versions, allocator settings."""

from __future__ import annotations

import os
import platform
import resource
from typing import Any

from memplan import __version__
from memplan.measure.nvml import Nvml
from memplan.trace.versions import installed

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "flash_attn")
# torch 2.9 renamed the variable; both are read (c10/core/AllocatorConfig).
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")
_OTHER_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "CUDA_MODULE_LOADING", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def environment(torch: Any, device: str, nvml: Nvml | None) -> dict[str, str]:
    """Facts as text; a key is missing where the fact does not exist here."""
    found = {"device": device, "python": platform.python_version(), "memplan": __version__, **installed(_PACKAGES)}
    for name in (*_ALLOCATOR_VARIABLES, *_OTHER_VARIABLES):
        if name in os.environ:
            found[name] = os.environ[name]
    if device != "cuda":
        return found
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": str(torch.version.cuda),
        "driver": nvml.driver_version() if nvml is not None else "",
        "cudnn": str(torch.backends.cudnn.version()),
        "allocator": torch.cuda.get_allocator_backend(),
    }
    return {key: value for key, value in found.items() if value}


def host_peak_bytes() -> int:
    """Largest resident set of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
