"""Measures real training steps on a GPU: the truth that estimates and traces are judged by.

The real transformers model with random weights, the real PEFT method and the real optimizer run for a few short steps in
a process of their own; torch.cuda's counters and the driver are read phase by phase. Nothing here imports the analytic
engine, and importing this package does not import torch.

Unattended, on a machine that gives one file back:

    memplan measure --suite all --skip-recorded --minutes 9 --bundle records.jsonl
    memplan measure --unpack records.jsonl --out memplan/evidence/records/measured
    python -m memplan.evidence calibration; python -m memplan.evidence table; python -m memplan.evidence baseline
"""

from __future__ import annotations

from memplan.measure.result import Death, DeviceReading, MeasureOptions, MeasureResult, PhaseReading
from memplan.measure.runner import MeasureFailedError, Runner

__all__ = ["Death", "DeviceReading", "MeasureFailedError", "MeasureOptions", "MeasureResult", "PhaseReading", "Runner"]
