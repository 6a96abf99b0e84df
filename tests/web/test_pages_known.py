"""How we know: what the page says of records is what scoring says."""

from __future__ import annotations

import pytest

from memplan.evidence.accuracy import committed_medians
from memplan.evidence.records import Level, record_files
from memplan.web.pages.known import known, rows


def test_every_configuration_with_an_estimate_is_read() -> None:
    by_source: dict[tuple[str, str], int] = {}
    for row in rows():
        by_source[row.source, row.level] = by_source.get((row.source, row.level), 0) + row.runs
        assert row.errors
        assert row.level in list(Level)
    assert set(by_source) == {(source, level) for source, level, engine in committed_medians() if engine == "estimate"}
    records = sum(len(file.records) for file in record_files())
    assert 0 < sum(by_source.values()) <= 3 * records


def test_the_nearest_records_come_first() -> None:
    found = known("llama", "lora")
    assert found
    assert all(entry.about == "llama models with lora" for entry in found)
    for entry in found:
        members = [row for row in rows() if row.family == "llama" and row.record.method == "lora"]
        errors = [
            error for row in members if (row.source, row.level) == (entry.source, entry.level) for error in row.errors
        ]
        assert (entry.lowest, entry.highest) == (min(errors), max(errors))


def test_what_was_never_measured_has_nothing() -> None:
    assert known("t5", "boft") == ()
    assert all(entry.about != "t5 models with lora" for entry in known("t5", "lora"))


@pytest.mark.parametrize(("family", "method"), [("mistral", "full"), ("gpt2", "lora")])
def test_the_page_says_where_no_run_is_near(family: str, method: str) -> None:
    assert all(f"{family} models with {method}" != entry.about for entry in known(family, method))
