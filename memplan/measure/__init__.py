"""Measures real training steps on a GPU: the truth that estimates and traces are judged by.

The real transformers model with random weights, the real PEFT method and the real optimizer run for a few short steps in
a process of their own; torch.cuda's counters and the driver are read phase by phase. Nothing here imports the analytic
engine, and importing this package does not import torch.
"""

from __future__ import annotations

from memplan.measure.result import Death, DeviceReading, MeasureOptions, MeasureResult, PhaseReading
from memplan.measure.runner import MeasureFailedError, Runner

__all__ = ["Death", "DeviceReading", "MeasureFailedError", "MeasureOptions", "MeasureResult", "PhaseReading", "Runner"]
