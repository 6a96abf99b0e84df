"""Traces a real training step on fake CUDA tensors: an independent witness for the analytic engine.

The real transformers model, the real PEFT method and the real optimizer run under `FakeTensorMode` in a worker
process; every storage's birth and death is recorded. Nothing here imports the analytic engine, and importing this
package does not import torch.
"""

from __future__ import annotations

from memplan.trace.result import Storage, TraceOp, TraceResult
from memplan.trace.runner import TraceFailedError, run, run_many
from memplan.trace.spec import AttentionBackend, Checkpointing, GpuArch, TraceSpec

__all__ = [
    "AttentionBackend",
    "Checkpointing",
    "GpuArch",
    "Storage",
    "TraceFailedError",
    "TraceOp",
    "TraceResult",
    "TraceSpec",
    "run",
    "run_many",
]
