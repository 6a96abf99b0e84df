"""The suites as data, and a campaign that runs them with a runner that measures nothing."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from pathlib import Path
from typing import Any

import pytest

from memplan.errors import InputError, UnavailableError, UnknownNameError
from memplan.measure.campaign import Planned, Prediction, plan, run
from memplan.measure.cli import SuiteOptions, already_recorded, run_suite
from memplan.measure.estimate import measured_spec
from memplan.measure.record import read_bundle, read_directory
from memplan.measure.result import MeasureOptions, MeasureResult
from memplan.measure.runner import MeasureFailedError
from memplan.measure.suite import Cell, cells, suite_names
from memplan.measure.table import plan_table, summary_table
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.spec import TraceSpec
from memplan.units import GIB, MIB
from tests.measure.conftest import LLAMA


def test_there_are_enough_cells_and_no_two_of_one_name() -> None:
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    assert len(names) >= 120
    assert suite_names() == ("core", "methods", "stress")


@pytest.mark.parametrize("suite", suite_names())
def test_every_cell_can_be_run(suite: str) -> None:
    for cell in cells(suite):
        for gpu in (None, "h100-sxm-80gb"):
            resolved = resolve(cell.recipe(gpu))
            spec = measured_spec(resolved)
            assert spec.num_steps == 3, cell.name
            assert cell.asks


def test_no_two_cells_ask_the_same() -> None:
    asked = [(cell.recipe().model_dump_json(), cell.capacity) for cell in cells()]
    assert len(set(asked)) == len(asked)


def test_capacity_cells_lie_on_both_sides_of_the_prediction() -> None:
    factors = [cell.capacity for cell in cells() if cell.capacity is not None]
    assert min(factors) < 1 < max(factors)
    assert 1.0 in factors


def test_a_model_with_fewer_layers() -> None:
    (cell,) = (cell for cell in cells("core") if cell.name == "2l-full")
    assert resolve(cell.recipe()).config["num_hidden_layers"] == 2
    assert resolve(cell.recipe()).config["hidden_size"] == 4096


def test_an_unknown_suite() -> None:
    with pytest.raises(UnknownNameError, match="core"):
        cells("cor")


# -- campaigns --------------------------------------------------------------------------------------------


def row(name: str, capacity: float | None = None) -> Cell:
    return Cell(name, "core", {"model": LLAMA, "sequence_length": 16, "micro_batch_size": 1}, "a test", capacity)


def predict(recipe: Recipe) -> Prediction:
    return Prediction(allocated_bytes=GIB, reserved_bytes=GIB + 5 * MIB, device_bytes=2 * GIB, parameters=1000)


def planned(*rows: Cell, reason: str = "") -> list[Planned]:
    prediction = Prediction(reason=reason) if reason else None
    return plan(rows, resolve, (lambda recipe: prediction or predict(recipe)), gpu="h100-sxm-80gb", steps=3)


class Canned:
    """Answers without measuring: with a result, or with an error."""

    def __init__(self, answer: MeasureResult | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[TraceSpec, MeasureOptions, float]] = []

    def run(self, spec: TraceSpec, options: MeasureOptions, *, timeout_s: float = 0.0) -> MeasureResult:
        self.asked.append((spec, options, timeout_s))
        if isinstance(self.answer, Exception):
            raise self.answer
        return dataclasses.replace(self.answer, options=options)


def test_capacity_is_the_prediction_times_the_factor(invented: MeasureResult) -> None:
    runner = Canned(invented)
    list(run(planned(row("a", 0.5), row("b")), runner, date="2026-01-02"))
    limits = [options.capacity_bytes for _, options, _ in runner.asked]
    assert limits == [514 * MIB, None]  # half of 1029 MiB, in steps of 2 MiB


def test_a_capacity_cell_without_a_prediction_is_not_run(invented: MeasureResult) -> None:
    runner = Canned(invented)
    (report,) = run(planned(row("a", 1.0), reason="no rule"), runner, date="2026-01-02")
    assert (report.status, report.message, runner.asked) == ("no_prediction", "no rule", [])


def test_a_record_holds_recipe_and_prediction(invented: MeasureResult) -> None:
    (report,) = run(planned(row("a")), Canned(invented), date="2026-01-02", version="9")
    assert report.record is not None
    assert report.record.recipe["gpu"] == "h100-sxm-80gb"
    assert report.record.predicted is not None
    assert report.record.predicted.reserved_bytes == GIB + 5 * MIB
    assert Recipe(**report.record.recipe) == planned(row("a"))[0].recipe


def test_all_cells_have_a_first_run_before_any_has_a_second(invented: MeasureResult) -> None:
    reports = list(run(planned(row("a"), row("b")), Canned(invented), date="2026-01-02", repeats=2, skip={("a", 1)}))
    assert [(report.planned.cell.name, report.repeat) for report in reports] == [("a", 0), ("b", 0), ("b", 1)]


def test_time_is_kept(invented: MeasureResult) -> None:
    now = iter(range(0, 100_000, 25))
    reports = list(
        run(planned(*(row(f"c{index}") for index in range(20))), Canned(invented), date="2026-01-02", minutes=5,
            clock=lambda: float(next(now)))
    )  # fmt: skip
    # Each cell reads the clock three times: 75 s; five minutes leave room for four, and a bounded rest.
    assert 0 < len(reports) <= 4


def test_a_cell_that_fails_does_not_end_the_suite(invented: MeasureResult) -> None:
    reports = list(run(planned(row("a"), row("b")), Canned(MeasureFailedError("died")), date="2026-01-02"))
    assert [(report.status, report.message) for report in reports] == [("failed", "died")] * 2


def test_a_missing_package_is_said(invented: MeasureResult) -> None:
    error = UnavailableError("this cell needs bitsandbytes", code="no_bitsandbytes")
    (report,) = run(planned(row("a")), Canned(error), date="2026-01-02")
    assert report.status == "unavailable"


def test_no_gpu_ends_the_suite() -> None:
    with pytest.raises(UnavailableError):
        list(run(planned(row("a")), Canned(UnavailableError("none", code="no_gpu")), date="2026-01-02"))


def test_records_reach_directory_and_bundle(
    invented: MeasureResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Instead(Canned):
        def __init__(self, **_: Any) -> None:
            super().__init__(invented)

        def __enter__(self) -> Instead:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("memplan.measure.cli.Runner", Instead)
    out, bundle, log = tmp_path / "records", tmp_path / "all.jsonl", io.StringIO()
    options = SuiteOptions(directory=out, bundle=bundle, recorded=(out, bundle))
    reports = run_suite(planned(row("a"), row("b")), options, log, today=lambda: dt.date(2026, 1, 2))
    assert [report.status for report in reports] == ["ok", "ok"]
    assert len(read_directory(out)) == len(list(read_bundle(bundle))) == 2
    assert already_recorded((out, tmp_path / "nothing")) == {("a", 0), ("b", 0)}
    assert run_suite(planned(row("a"), row("b")), options, log) == []
    assert "2 ok" in log.getvalue()
    with pytest.raises(InputError, match="for testing"):
        run_suite(planned(row("a")), SuiteOptions(device="cpu", bundle=bundle), log)


def test_tables(invented: MeasureResult, dead: MeasureResult) -> None:
    table = plan_table(planned(row("a", 1.03), row("b")))
    assert len({line.index("a test") for line in table.splitlines()[1:]}) == 1
    (good,) = run(planned(row("a")), Canned(invented), date="2026-01-02")
    (bad,) = run(planned(row("b")), Canned(dead), date="2026-01-02")
    summary = summary_table([good, bad])
    assert f"{100 * (GIB / (600 * MIB) - 1):+.2f} %" in summary
    assert "died in the backward of step 1" in summary
    assert "1 ok, 1 out_of_memory" in summary
