"""What predictions are held to, source by source: whether each goal is met, and the known cause where it is not.

The goals and causes are `goals.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.evidence.scoring import Scored, Summary, summaries

TABLE = Path(__file__).resolve().parent / "goals.toml"
HEADINGS = ("level", "engine", "goal", "source", "records", "median", "worst", "met", "known cause")
NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        source: the only one that it is set for; empty for every source.
        median, worst: the largest absolute errors that meet it, as fractions; `worst` None for no bound.
    """

    level: str
    engine: str
    median: float
    worst: float | None = None
    source: str = ""

    def is_met(self, found: Summary) -> bool:
        """Whether a source's errors meet the goal."""
        return found.median <= self.median and (self.worst is None or abs(found.worst) <= self.worst)

    @property
    def text(self) -> str:
        """The goal in words."""
        bound = "" if self.worst is None else f", worst at most {100 * self.worst:g} %"
        return f"median at most {100 * self.median:g} %{bound}"


@lru_cache(maxsize=1)
def _table() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def goals() -> tuple[Goal, ...]:
    """Every goal, in the order of the table."""
    return tuple(Goal(**row) for row in _table()["goal"])


def causes() -> dict[tuple[str, str, str], str]:
    """Why a source falls short, by source, level and engine."""
    return {(row["source"], row["level"], row["engine"]): row["text"] for row in _table()["cause"]}


def goal_rows(scored: Iterable[Scored]) -> list[tuple[str, ...]]:
    """The cells below `HEADINGS`: every goal on every source that has records of its level."""
    entries = list(scored)
    known, found = causes(), summaries(entries)
    rows: list[tuple[str, ...]] = []
    for goal in goals():
        for row in found:
            if (str(row.level), row.engine) != (goal.level, goal.engine) or goal.source not in ("", row.source):
                continue
            met = goal.is_met(row)
            cause = "" if met else known.get((row.source, goal.level, goal.engine), NOT_KNOWN)
            rows.append(
                (
                    goal.level, goal.engine, goal.text, row.source, str(row.records), f"{100 * row.median:.3f} %",
                    f"{100 * row.worst:+.2f} %", "yes" if met else "no", cause,
                )
            )  # fmt: skip
    return rows
