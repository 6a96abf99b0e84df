"""The committed records: schema, immutability of what was read, and recipes that resolve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.errors import FileFormatError, UnknownNameError
from memplan.evidence.records import RECORDS_DIRECTORY, Level, RecordFile, read_records, record_files, select_files
from memplan.resolve import resolve

FILES = record_files()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_usable_record_is_a_recipe(file: RecordFile) -> None:
    for record in file.records:
        if record.usable:
            resolve(record.as_recipe())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_levels_are_ordered_where_one_run_gives_several(file: RecordFile) -> None:
    for record in file.records:
        read = [size for size in (record.measured.at(level) for level in Level) if size is not None]
        assert read == sorted(read), record.id


def test_records_stay_compact() -> None:
    assert sum(path.stat().st_size for path in RECORDS_DIRECTORY.glob("*.json")) < 1_500_000


def test_t4_records_hold_what_was_published() -> None:
    """Spot checks against the archive: readings are never edited."""
    (file,) = select_files("t4")
    by_id = {record.id: record for record in file.records}
    assert len(by_id) == 32
    first = by_id["t4/Qwen2.5-1.5B-Instruct-nf4-eager-bs2-seq1024-r32#0"].measured
    assert (first.allocated_bytes, first.reserved_bytes, first.device_bytes) == (7170728919, 7914651648, 8062369792)
    for record in file.records:
        assert record.measured.device_bytes is not None
        assert record.measured.reserved_bytes is not None
        context = record.measured.device_bytes - record.measured.reserved_bytes
        assert context == 147_718_144  # 140.875 MiB, as the archive states for every run


def _minimal() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "example",
        "title": "An example",
        "quantities": {"allocated": "max_memory_allocated"},
        "settled": {"precision": {"key": "precision", "value": "pure", "how": "stated", "reason": "no autocast"}},
        "records": [
            {
                "id": "example/1",
                "source": {"repo": "owner/name"},
                "method": "full",
                "model": "openai-community/gpt2",
                "recipe": {"model": "openai-community/gpt2", "precision": "pure", "dtype": "bfloat16"},
                "settled": ["precision"],
                "measured": {"allocated_bytes": 1000},
                "hardware": {"name": "NVIDIA L4"},
                "confidence": "high",
            }
        ],
    }


def _read(data: dict[str, Any], tmp_path: Path) -> RecordFile:
    path = tmp_path / "example.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return read_records(path)


def test_a_file_round_trips(tmp_path: Path) -> None:
    file = _read(_minimal(), tmp_path)
    assert file.records[0].measured.at(Level.ALLOCATED) == 1000
    assert file.records[0].usable


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["records"][0].update(speed=1), "Extra inputs"),
        (lambda d: d["records"].append(d["records"][0]), "share an id"),
        (lambda d: d["records"][0].update(settled=["nothing"]), "does not settle"),
        (lambda d: d["records"][0]["recipe"].update(precision="fp32"), "not what 'precision' settles"),
        (lambda d: d["records"][0].update(measured={"reserved_bytes": 5}), "does not say what was read"),
        (lambda d: d["records"][0].update(measured={}), "no measured bytes"),
        (lambda d: d["records"][0].update(measured={"allocated_bytes": 0}), "greater than 0"),
        (lambda d: d["records"][0].update(measured={"allocated_bytes": 1.5}), "valid integer"),
        (lambda d: d.update(schema_version=2), "schema_version"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(change: Any, complaint: str, tmp_path: Path) -> None:
    data = _minimal()
    change(data)
    with pytest.raises(FileFormatError, match=complaint):
        _read(data, tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"name": ', encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"broken\.json: line 1"):
        read_records(path)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="t4"):
        select_files("t5")
