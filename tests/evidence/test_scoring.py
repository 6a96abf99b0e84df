"""Errors, summaries and verdicts on numbers that can be checked by hand."""

from __future__ import annotations

import statistics

import pytest

from memplan import estimate
from memplan.estimate import Fits
from memplan.evidence.predictions import Prediction
from memplan.evidence.records import Hardware, Level, Measured, Record, Source, select_files
from memplan.evidence.scoring import Judged, Scored, _judge, at_level, group_of, score, summaries, verdict_matrix


def _record(name: str = "a", **measured: int) -> Record:
    return Record(
        id=name,
        source=Source(repo="owner/name"),
        method="lora",
        model="Qwen/Qwen2.5-0.5B",
        recipe={"model": "Qwen/Qwen2.5-0.5B", "method": "lora", "dtype": "bfloat16", "gpu": "l4"},
        measured=Measured(**measured),
        hardware=Hardware(name="NVIDIA L4"),
        confidence="high",
    )


def _scored(predicted: int, measured: int) -> Scored:
    return Scored("s", _record(), "estimate", Level.ALLOCATED, predicted, measured)


def test_errors_are_signed() -> None:
    assert _scored(90, 100).error == pytest.approx(-0.1)
    assert _scored(110, 100).error == pytest.approx(0.1)


def test_a_summary_by_hand() -> None:
    errors = [-40, 1, 2, -3]  # percent
    (row,) = summaries(_scored(100 + error, 100) for error in errors)
    assert row.records == 4
    assert row.median == pytest.approx(0.025)
    assert row.p95 == pytest.approx(0.40)
    assert row.worst == pytest.approx(-0.40)
    assert row.under == pytest.approx(0.5)


def test_p95_is_the_nearest_rank() -> None:
    (row,) = summaries(_scored(1000 + index, 1000) for index in range(1, 101))
    assert row.p95 == pytest.approx(0.095)
    assert row.median == pytest.approx(statistics.median(range(1, 101)) / 1000)


@pytest.mark.parametrize(
    ("by", "group"),
    [("method", "lora"), ("family", "qwen2"), ("gpu", "L4 24GB"), ("precision", "pure, bfloat16"), ("source", "s")],
)
def test_groups(by: str, group: str) -> None:
    found = group_of(_record(), by, "s")  # type: ignore[arg-type]
    assert found == group


def test_a_wrong_fits_is_a_run_that_died_or_outgrew_its_bound() -> None:
    def judged(fits: Fits, ran: bool, held: bool | None) -> Judged:
        return Judged("s", _record(), fits, ran, held)

    assert judged(Fits.FITS, False, None).wrong_fits
    assert judged(Fits.FITS, True, False).wrong_fits
    assert not judged(Fits.FITS, True, True).wrong_fits
    assert not judged(Fits.UNCERTAIN, False, None).wrong_fits
    entries = [judged(Fits.FITS, True, True), judged(Fits.UNCERTAIN, False, None), judged(Fits.FITS, True, True)]
    assert verdict_matrix(entries) == {(True, Fits.FITS): 2, (False, Fits.UNCERTAIN): 1}


def test_a_score_is_the_estimate_of_the_records_recipe() -> None:
    entry = next(entry for entry in score("t4").scored if entry.level is Level.ALLOCATED)
    assert entry.predicted_bytes == estimate(**entry.record.recipe).peak.allocated_bytes
    assert entry.measured_bytes == entry.record.measured.allocated_bytes


def test_every_record_is_scored_or_says_why() -> None:
    scores = score()
    scored = {entry.record.id for entry in scores.scored}
    missing = {entry.record.id: entry.reason for entry in scores.not_scored}
    assert not scored & set(missing)
    assert all(missing.values())


def test_a_run_under_a_limit_is_judged_by_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = {Level.ALLOCATED: 90, Level.RESERVED: 100, Level.DEVICE: 150}
    prediction = Prediction(predicted, fits=Fits.FITS, upper_bytes=1000, upper_reserved_bytes=120)

    def judged(capacity: int, outcome: str, **measured: int) -> Judged:
        record = _record(**measured).model_copy(update={"capacity_bytes": capacity, "outcome": outcome})
        return _judge("s", record, prediction, Fits.FITS)

    assert judged(99, "out_of_memory").fits is Fits.DOES_NOT_FIT
    assert judged(110, "ok", reserved_bytes=105).fits is Fits.UNCERTAIN
    assert judged(120, "ok", reserved_bytes=119).fits is Fits.FITS
    assert judged(120, "out_of_memory").wrong_fits
    assert judged(99, "ok", reserved_bytes=99).wrong_no
    assert judged(130, "ok", reserved_bytes=125).upper_held is False
    assert all(judged(limit, "ok", reserved_bytes=99).limited for limit in (99, 110, 120))


def test_under_a_limit_only_allocated_bytes_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    record = _record(allocated_bytes=10**9, reserved_bytes=2 * 10**9).model_copy(update={"capacity_bytes": 3 * 10**9})
    file = select_files("t4")[0].model_copy(update={"records": (record,), "settled": {}})
    monkeypatch.setattr("memplan.evidence.scoring.select_files", lambda source: (file,))
    scores = score()
    assert [entry.level for entry in scores.scored] == [Level.ALLOCATED]
    assert [entry.limited for entry in scores.judged] == [True]


def test_one_level_alone() -> None:
    scores = at_level(score("t4"), Level.DEVICE)
    assert {entry.level for entry in scores.scored} == {Level.DEVICE}
    assert len(scores.scored) == len(scores.judged) == 32
