"""Optimizers by the names of transformers' `optim`: their states tensor by tensor, and what their step borrows.

>>> from memplan.dtypes import DType
>>> optimizer = get_optimizer("adamw_torch_fused")
>>> optimizer.state_bytes([ParamInfo((4096, 4096), DType.BFLOAT16)])
StateBytes(device_bytes=67109376, device_unrounded_bytes=67108868, host_bytes=0, paged_bytes=0)
"""

from __future__ import annotations

from memplan.optimizers.base import (
    Implementation,
    Optimizer,
    ParamInfo,
    Placement,
    StateBytes,
    StateTensor,
    StepTemporaries,
)
from memplan.optimizers.catalog import OptimizerRow, optimizer_rows
from memplan.optimizers.registry import default_optimizer, get_optimizer, optimizer_names
from memplan.optimizers.temporaries import StepEvent, TensorGroup, peak_bytes

__all__ = [
    "Implementation",
    "Optimizer",
    "OptimizerRow",
    "ParamInfo",
    "Placement",
    "StateBytes",
    "StateTensor",
    "StepEvent",
    "StepTemporaries",
    "TensorGroup",
    "default_optimizer",
    "get_optimizer",
    "optimizer_names",
    "optimizer_rows",
    "peak_bytes",
]
