"""The records may not get worse than the committed baseline."""

from __future__ import annotations

import copy

import pytest

from memplan.evidence.baseline import Baseline, committed, current, regressions, tightened


def test_nothing_got_worse() -> None:
    """`python -m memplan.evidence baseline` tightens the file; looser figures are edited by hand, for a reason."""
    assert regressions(current(), committed()) == []


BEFORE: Baseline = {
    "wrong_fits": 0,
    "errors": {"t4 allocated estimate": {"records": 10, "median_percent": 1.0, "p95_percent": 3.0}},
}


def changed(**figures: float) -> Baseline:
    now = copy.deepcopy(BEFORE)
    now["errors"]["t4 allocated estimate"].update(figures)
    return now


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({**BEFORE, "wrong_fits": 1}, "1 wrong fits, 0 before"),
        ({**BEFORE, "errors": {}}, "no record is scored any more"),
        (changed(records=9), "9 records scored, 10 before"),
        (changed(median_percent=1.1), "median 1.1 %, 1.0 % before"),
        (changed(p95_percent=3.5), "p95 3.5 %, 3.0 % before"),
    ],
)
def test_what_counts_as_worse(now: Baseline, words: str) -> None:
    (found,) = regressions(now, BEFORE)
    assert words in found


@pytest.mark.parametrize("now", [BEFORE, changed(median_percent=0.5), changed(records=20, median_percent=2.0)])
def test_what_does_not(now: Baseline) -> None:
    assert regressions(now, BEFORE) == []


def test_tightening_never_loosens() -> None:
    assert tightened(changed(median_percent=2.0, p95_percent=2.0), BEFORE) == changed(p95_percent=2.0)
    assert tightened(changed(records=20, median_percent=2.0), BEFORE) == changed(records=20, median_percent=2.0)
    assert tightened({"wrong_fits": 3, "errors": {}}, BEFORE) == BEFORE
