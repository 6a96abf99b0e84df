"""Measured runs as records, and how well memplan predicts them.

from memplan.evidence import run_accuracy, score
print(run_accuracy(source="t4", by="method"))
score("t4").scored[0].error
"""

from __future__ import annotations

from memplan.evidence.accuracy import run_accuracy
from memplan.evidence.records import Level, Record, RecordFile, record_files, select_files
from memplan.evidence.scoring import Scores, score, summaries

__all__ = [
    "Level",
    "Record",
    "RecordFile",
    "Scores",
    "record_files",
    "run_accuracy",
    "score",
    "select_files",
    "summaries",
]
