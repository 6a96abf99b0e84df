"""The coverage table: how it is made, and that the committed one is of the installed libraries."""

from __future__ import annotations

from pathlib import Path

import memplan.trace.coverage as coverage
from memplan.errors import UnsupportedError
from memplan.trace import TraceSpec


def _page() -> str:
    return Path(coverage.__file__).with_name("COVERAGE.md").read_text(encoding="utf-8")


def test_every_case_is_a_valid_spec_with_a_label_of_its_own() -> None:
    labels = [label for entries in coverage.sections().values() for label in entries]
    assert len(labels) == len(set(labels)) > 190
    for entries in coverage.sections().values():
        for options in entries.values():
            TraceSpec.from_dict({"model_config": coverage.cases.LLAMA, **options})


def test_the_committed_table_holds_every_case_and_the_installed_versions() -> None:
    page = _page()
    assert coverage.installed_versions() in page
    for title, entries in coverage.sections().items():
        assert f"## {title}" in page
        for label in entries:
            assert f"| {label} | works |" in page or f"| {label} | fails |" in page, label


def test_outcomes_and_their_rows() -> None:
    failed = coverage.outcome(UnsupportedError("no such kernel. More words\nand lines"))
    assert failed == coverage.Outcome(False, "no such kernel")
    page = coverage.render({"Axis": {"a|b": coverage.Outcome(True, "", 5), "c": failed}}, "torch 0")
    assert "1 of 2 work." in page
    assert "| c | fails | no such kernel |" in page


def test_cases_are_tried_for_real() -> None:
    found = coverage.try_all({"works": {}, "fails": {"optim": "stable_adamw"}})
    assert found["works"].works
    assert found["works"].peak_bytes > 0
    assert not found["fails"].works
    assert "torch-optimi" in found["fails"].reason
