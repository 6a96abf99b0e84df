"""The committed traces: made from the records as they stand, and reproducible."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from memplan.evidence import predictions, tracing
from memplan.evidence.predictions import predict, recipe_key, traced_answers
from memplan.evidence.records import Level, Record, record_files, select_files
from memplan.evidence.tracing import trace_records, traced_answer


def _record(name: str) -> Record:
    return next(record for record in select_files("t4")[0].records if record.id == name)


SMALL = _record("t4/SmolLM2-135M-none-eager-bs2-seq512-r32#13")


def test_no_committed_trace_is_of_a_recipe_that_is_gone() -> None:
    recipes = {recipe_key(record) for file in record_files() for record in file.records}
    assert set(traced_answers()) <= recipes


def test_a_committed_trace_comes_out_again() -> None:
    committed = traced_answers()[recipe_key(SMALL)]
    if committed["versions"]["torch"].partition("+")[0] != importlib.metadata.version("torch").partition("+")[0]:
        pytest.skip("traced under another torch")
    assert traced_answer(SMALL) == committed


def test_a_record_without_a_trace_says_so() -> None:
    record = SMALL.model_copy(update={"recipe": {**SMALL.recipe, "sequence_length": 513}})
    assert predict(record, "trace").not_covered == "not traced yet"


def test_a_trace_does_not_answer_for_another_torchs_attention() -> None:
    record = _record("t4/SmolLM2-135M-none-flash-bs2-seq512-r32#15")
    if traced_answers()[recipe_key(record)]["versions"]["torch"].startswith("2.14"):
        pytest.skip("traced under the version that the recipe names")
    assert "sdpa of torch 2.14" in predict(record, "trace").not_covered


def test_a_recipe_that_cannot_be_traced_is_an_answer_too() -> None:
    record = SMALL.model_copy(update={"recipe": {**SMALL.recipe, "gpus": 2}})
    assert traced_answer(record) == {"failed": "a trace does not cover more than one GPU"}


def test_answers_are_written_as_they_come_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {
        "allocated_bytes": 1,
        "reserved_bytes": 2,
        "device_bytes": 3,
        "phase": "backward",
        "versions": {"torch": "2.13.0"},
    }
    seen = []

    def traced(record: Record) -> dict[str, object]:
        seen.append(record.id)
        return dict(answer)

    for module in (predictions, tracing):
        monkeypatch.setattr(module, "TRACED_FILE", tmp_path / "traced.json")
    monkeypatch.setattr(tracing, "traced_answer", traced)
    predictions._traced_file.cache_clear()
    try:
        assert trace_records("t4") == len(seen) == 32
        predictions._traced_file.cache_clear()
        assert predict(SMALL, "trace").bytes[Level.RESERVED] == 2
        assert trace_records("t4") == 0
    finally:
        predictions._traced_file.cache_clear()
