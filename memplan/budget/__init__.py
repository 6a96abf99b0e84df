"""Budgets of memory in a repository: checks with limits, growth against a base, and why it grew.

    memplan.check("memplan.toml", base="origin/main").exit_code
    memplan.budget.diff("main:configs/sft.yaml", "configs/sft.yaml")

Which status a check has: `memplan.budget.judging`. Which exit code that is: `CheckReport`.
"""

from __future__ import annotations

from memplan.budget.api import Content, check, check_files, check_mapping, diff
from memplan.budget.result import CheckReport, CheckResult, Difference, Growth, Limit, Outcome, Status

__all__ = [
    "CheckReport",
    "CheckResult",
    "Content",
    "Difference",
    "Growth",
    "Limit",
    "Outcome",
    "Status",
    "check",
    "check_files",
    "check_mapping",
    "diff",
]
