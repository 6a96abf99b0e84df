"""Budgets of memory in a repository: checks with limits, growth against a base, and why it grew.

    memplan.check("memplan.toml", base="origin/main").exit_code
    memplan.budget.diff("main:configs/sft.yaml", "configs/sft.yaml")

Which status a check has: `memplan.budget.judging`. Which exit code that is: `CheckReport`. Nothing is loaded before it is
asked for: pytest imports this package for its plugin, whether or not a test has a budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from memplan.budget import api, result

    return getattr(api, name, None) or getattr(result, name)
