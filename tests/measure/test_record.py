"""Records are immutable, and a run on the CPU is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from memplan.errors import FileFormatError, InputError
from memplan.evidence.measured import MEASURED_DIRECTORY, as_records, measured_file
from memplan.measure.record import (
    MeasuredRecord,
    append_to_bundle,
    make_record,
    read_bundle,
    read_directory,
    read_record,
    recorded_cells,
    unpack,
    write_record,
)
from memplan.measure.result import MeasureOptions, MeasureResult
from memplan.units import MIB
from tests.measure.conftest import LLAMA

RECIPE = {"model": LLAMA, "sequence_length": 16, "gpu": "h100-sxm-80gb"}


def record_of(result: MeasureResult, cell: str = "cell") -> MeasuredRecord:
    return make_record(result, RECIPE, cell=cell, suite="core", date="2026-01-02")


def test_a_file_round_trips(invented: MeasureResult, tmp_path: Path) -> None:
    record = record_of(invented)
    path = write_record(record, tmp_path)
    assert path.name == f"cell-0-{record.digest}.json"
    assert read_record(path) == record
    assert read_directory(tmp_path) == (record,)


def test_an_edited_record_is_refused(invented: MeasureResult, tmp_path: Path) -> None:
    path = write_record(record_of(invented), tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["max_allocated_bytes"] += 1
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FileFormatError, match="never edited"):
        read_record(path)


def test_a_run_on_the_cpu_is_no_record(invented: MeasureResult) -> None:
    for changed in (
        dataclasses.replace(invented, options=MeasureOptions(device="cpu")),
        dataclasses.replace(invented, environment={"device": "cuda"}),
    ):
        with pytest.raises(InputError) as caught:
            record_of(changed)
        assert caught.value.code == "not_a_record"


def test_a_bundle_survives_being_killed(invented: MeasureResult, dead: MeasureResult, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.jsonl"
    append_to_bundle(record_of(invented, "one"), bundle)
    append_to_bundle(record_of(dead, "two"), bundle)
    whole = bundle.read_text(encoding="utf-8")
    bundle.write_text(whole + whole[:200], encoding="utf-8")
    assert [record.cell for record in read_bundle(bundle)] == ["one", "two"]
    paths = unpack(bundle, tmp_path / "records")
    assert len(paths) == 2
    assert recorded_cells(read_directory(tmp_path / "records")) == {("one", 0), ("two", 0)}
    assert unpack(bundle, tmp_path / "records") == paths


def test_a_broken_line_inside_a_bundle_is_refused(invented: MeasureResult, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.jsonl"
    bundle.write_text('{"cell": "x"}\n', encoding="utf-8")
    append_to_bundle(record_of(invented), bundle)
    with pytest.raises(FileFormatError, match=r"bundle\.jsonl:1"):
        list(read_bundle(bundle))


def test_records_in_the_shape_that_is_scored(invented: MeasureResult, dead: MeasureResult, tmp_path: Path) -> None:
    write_record(record_of(invented, "one"), tmp_path)
    write_record(record_of(dead, "two"), tmp_path)
    file = measured_file(tmp_path)
    assert file is not None
    one, two = file.records
    assert (one.method, one.measured.allocated_bytes, one.outcome) == ("full", 600 * MIB, "ok")
    assert (two.outcome, two.capacity_bytes, two.measured.allocated_bytes) == ("out_of_memory", 410 * MIB, None)
    assert [record.usable for record in as_records([record_of(invented)])] == [True]


def test_committed_records_are_what_their_names_say() -> None:
    read_directory(MEASURED_DIRECTORY)
