"""How well the walk agrees with the trace: a sample in which every pair of choices occurs, and the table of its results.

`sample` makes the recipes, `run` walks and traces them, `to_markdown` writes `memplan/step/AGREEMENT.md`.
"""

from __future__ import annotations

from memplan.agreement.matrix import CELLS, Cell, Result, quick_sample, run, sample
from memplan.agreement.table import EXACT_GOAL, LARGEST_GOAL, meets_goal, to_markdown

__all__ = [
    "CELLS",
    "EXACT_GOAL",
    "LARGEST_GOAL",
    "Cell",
    "Result",
    "meets_goal",
    "quick_sample",
    "run",
    "sample",
    "to_markdown",
]
