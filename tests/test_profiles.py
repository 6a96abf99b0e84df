"""Profiles of the user's own cards: kept, put in force, named by verdicts, and never by themselves."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplan
from memplan.catalog.calibration import RunKind, rows, stated_bytes
from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import get_gpu
from memplan.cli.calibrate import CELLS, profile_of
from memplan.errors import FileFormatError, UnavailableError
from memplan.measure.campaign import Planned, Prediction, Report, plan
from memplan.measure.result import MeasureResult
from memplan.measure.suite import cells
from memplan.profiles import Profile, forget, read_profile, use, use_local, write_profile
from memplan.resolve import resolve
from memplan.units import GIB, MIB
from tests.cli.conftest import Run, run  # noqa: F401 (a fixture)
from tests.measure.conftest import invented  # noqa: F401 (a fixture)

GPU = get_gpu("h100-sxm-80gb")
RECIPE = {"model": "meta-llama/Llama-3.2-1B", "method": "lora", "sequence_length": 512, "gpu": GPU.id}


@pytest.fixture(autouse=True)
def nothing_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MEMPLAN_DATA_DIR", str(tmp_path))
    yield
    forget()


def planned(reserved_bytes: int) -> list[Planned]:
    by_name = {cell.name: cell for cell in cells()}
    prediction = Prediction(allocated_bytes=reserved_bytes, reserved_bytes=reserved_bytes)
    return plan([by_name[name] for name in CELLS[:3]], resolve, lambda recipe: prediction, gpu=GPU.id, steps=3)


def profile(result: MeasureResult, reserved_bytes: int = 600 * MIB) -> Profile:
    reports = [Report(entry, "ok", 1.0, result=result) for entry in planned(reserved_bytes)]
    return profile_of(GPU, reports, "2026-01-02")


def test_a_profile_holds_context_and_excess(invented: MeasureResult) -> None:  # noqa: F811
    found = profile(invented)
    assert found.context_bytes == 500 * MIB
    assert [entry.measured_reserved_bytes for entry in found.runs] == [620 * MIB] * 3
    kinds = {row.kind: row for row in found.as_rows()}
    assert set(kinds) == {RunKind.ADAPTER, RunKind.QUANTIZED_ADAPTER}
    assert kinds[RunKind.ADAPTER].worst_ppm == 33_334  # 620 / 600 - 1, rounded up
    assert all(row.bound_ppm is None for row in kinds.values())


def test_it_is_kept_and_read_again(invented: MeasureResult) -> None:  # noqa: F811
    path = write_profile(profile(invented))
    assert read_profile(path) == profile(invented)
    assert use_local() == [profile(invented)]


def test_verdicts_use_and_name_it(invented: MeasureResult) -> None:  # noqa: F811
    before = memplan.estimate(**RECIPE)
    use(profile(invented))
    after = memplan.estimate(**RECIPE)
    assert cuda_context(GPU).expected_bytes == 500 * MIB
    assert after.peak.device_bytes - after.peak.reserved_bytes == 500 * MIB
    assert "profile of this card of 2026-01-02" in after.verdict().margin
    assert "3 measured" not in before.verdict().margin
    # A few runs never narrow the margin.
    added = after.verdict().upper_bytes - after.verdict().expected_bytes
    assert added >= stated_bytes(after.verdict().expected_bytes)
    assert after.verdict("t4") == before.verdict("t4")
    assert "profile" not in after.verdict("t4").margin


def test_runs_above_the_stated_margin_widen_it(invented: MeasureResult) -> None:  # noqa: F811
    use(profile(invented, reserved_bytes=62 * MIB))  # measured is ten times what was predicted
    found = memplan.estimate(**RECIPE)
    assert found.verdict().upper_bytes > 9 * found.peak.reserved_bytes
    assert "widened" in found.verdict().margin
    assert "profile of this card" in found.verdict().margin


def test_an_own_excess_limits_a_committed_bound(
    invented: MeasureResult,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(profile(invented, reserved_bytes=310 * MIB))  # twice what was predicted
    (own,) = (row for row in profile(invented).as_rows() if row.kind is RunKind.ADAPTER)
    committed = dataclasses.replace(
        own, where="sm90", counted=60, models=5, families=("llama",), low_bytes=0, high_bytes=GIB * 80, bound_ppm=10_000
    )
    monkeypatch.setattr("memplan.catalog.calibration.rows", lambda: {("sm90", RunKind.ADAPTER): committed})
    found = memplan.estimate(**RECIPE)
    assert found.verdict().upper_bytes - found.verdict().expected_bytes == found.peak.reserved_bytes
    assert "calibrated on 60" in found.verdict().margin
    rows.cache_clear()


def test_nothing_is_in_force_by_itself(invented: MeasureResult) -> None:  # noqa: F811
    write_profile(profile(invented))
    assert "profile" not in memplan.estimate(**RECIPE).verdict().margin


def test_the_command_line_uses_it_and_a_service_would_not(invented: MeasureResult) -> None:  # noqa: F811
    write_profile(profile(invented))
    command = [sys.executable, "-m", "memplan", "estimate", "--model", "meta-llama/Llama-3.2-1B", "--method", "lora",
               "--sequence-length", "512", "--gpu", GPU.id, "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "profile of this card of 2026-01-02" in done.stdout


def test_a_broken_profile_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "profiles"
    directory.mkdir()
    (directory / "t4.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"t4\.json is not a profile"):
        use_local()


def test_without_a_reading_there_is_no_profile() -> None:
    reports = [Report(entry, "failed", 1.0, message="died") for entry in planned(GIB)]
    with pytest.raises(UnavailableError, match="no run gave a reading"):
        profile_of(GPU, reports, "2026-01-02")


def test_the_cells_exist_and_grow() -> None:
    names = {cell.name for cell in cells()}
    assert set(CELLS) <= names


def test_the_command_without_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("memplan.measure.cli.measured_gpu_name", lambda: None)
    done = run("calibrate")
    assert (done.code, "needs an NVIDIA GPU" in done.err) == (4, True)


def test_the_command_with_one(
    run: Run,  # noqa: F811
    invented: MeasureResult,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    def run_suite(entries: list[Planned], options: object, stream: object) -> list[Report]:
        asked.extend(entry.cell.name for entry in entries)
        return [Report(entry, "ok", 1.0, result=invented) for entry in entries]

    monkeypatch.setattr("memplan.measure.cli.measured_gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("memplan.measure.cli.run_suite", run_suite)
    done = run("calibrate")
    assert done.code == 0
    assert asked == list(CELLS)
    assert "CUDA context 500.0 MiB" in done.out
    assert (tmp_path / "profiles" / f"{GPU.id}.json").exists()
    assert "deleted" in run("calibrate", "--forget").out
    assert run("calibrate", "--forget").out == ""


def test_a_small_card_gets_small_cells(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def run_suite(entries: list[Planned], options: object, stream: object) -> list[Report]:
        asked.extend(entry.cell.name for entry in entries)
        return []

    monkeypatch.setattr("memplan.measure.cli.measured_gpu_name", lambda: "Tesla T4")
    monkeypatch.setattr("memplan.measure.cli.run_suite", run_suite)
    done = run("calibrate")
    assert done.code == 4
    assert "1b-lora" in asked or "2l-lora" in asked
    assert "1b-full" not in asked or len(asked) < len(CELLS)


def test_an_unknown_card_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("memplan.measure.cli.measured_gpu_name", lambda: "NVIDIA Imaginary 1")
    done = run("calibrate")
    assert (done.code, "card of the catalog" in done.err) == (2, True)
