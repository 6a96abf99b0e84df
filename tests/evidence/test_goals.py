"""Goals: which are met, and that a cause is named for sources and levels that exist."""

from __future__ import annotations

import pytest

from memplan.evidence.goals import HEADINGS, NOT_KNOWN, Goal, causes, goal_rows, goals
from memplan.evidence.records import Level, record_files
from memplan.evidence.scoring import Scored, Summary


def summary(median: float, worst: float) -> Summary:
    return Summary("t4", Level.RESERVED, "estimate", "", 3, median, abs(worst), worst, 1.0)


@pytest.mark.parametrize(
    ("goal", "median", "worst", "met"),
    [
        (Goal("reserved", "estimate", 0.02, 0.08), 0.02, -0.08, True),
        (Goal("reserved", "estimate", 0.02, 0.08), 0.021, 0.0, False),
        (Goal("reserved", "estimate", 0.02, 0.08), 0.001, -0.081, False),
        (Goal("device", "trace", 0.03), 0.03, -0.5, True),
    ],
)
def test_a_goal_is_met_by_median_and_worst(goal: Goal, median: float, worst: float, met: bool) -> None:
    assert goal.is_met(summary(median, worst)) is met


def test_every_level_has_a_goal_for_both_engines() -> None:
    assert {(goal.level, goal.engine) for goal in goals()} == {
        (str(level), engine) for level in Level for engine in ("estimate", "trace")
    }


def test_causes_are_of_sources_and_goals_that_exist() -> None:
    sources = {file.name for file in record_files()}
    for source, level, engine in causes():
        assert source in sources
        assert any((goal.level, goal.engine) == (level, engine) for goal in goals())


def test_a_goal_may_be_set_for_one_source() -> None:
    records = {file.name: file.records[0] for file in record_files() if file.name in ("t4", "peft")}
    shown = {
        name: [row[2] for row in goal_rows([Scored(name, record, "estimate", Level.RESERVED, 1_001, 1_000)])]
        for name, record in records.items()
    }
    assert shown == {
        "t4": ["median at most 2 %, worst at most 8 %"],
        "peft": ["median at most 2 %, worst at most 8 %", "median at most 0.7 %, worst at most 4 %"],
    }


def test_a_shortfall_without_a_known_cause_says_so() -> None:
    record = next(record for file in record_files() if file.name == "t4" for record in file.records)
    far, near = (Scored("t4", record, "estimate", Level.RESERVED, size, 1_000) for size in (1_500, 1_001))
    (row,) = goal_rows([far])
    assert dict(zip(HEADINGS, row, strict=True)) | {"median": "", "records": ""} == {
        "level": "reserved", "engine": "estimate", "goal": "median at most 2 %, worst at most 8 %", "source": "t4",
        "records": "", "median": "", "worst": "+50.00 %", "met": "no", "known cause": NOT_KNOWN,
    }  # fmt: skip
    (row,) = goal_rows([near])
    assert row[-2:] == ("yes", "")
