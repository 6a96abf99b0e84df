"""The committed page, and the four formats of the report."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from memplan.errors import UnknownNameError
from memplan.evidence.accuracy import (
    ACCURACY_FILE,
    accuracy_page,
    committed_estimates,
    committed_medians,
    run_accuracy,
)
from memplan.evidence.predictions import ESTIMATED_FILE
from memplan.evidence.scoring import score, summaries


def test_the_committed_page_is_what_the_code_gives() -> None:
    """Regenerate it with `python -m memplan.evidence table`, and look at the difference before committing it."""
    assert ACCURACY_FILE.read_text(encoding="utf-8") == accuracy_page()


def test_the_committed_estimates_are_what_the_engine_gives() -> None:
    """Regenerate them with `python -m memplan.evidence table`."""
    assert ESTIMATED_FILE.read_text(encoding="utf-8") == committed_estimates()
    assert score(committed=True) == score()


def test_a_service_never_computes_what_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memplan.evidence.predictions._committed", dict)
    monkeypatch.setattr("memplan.evidence.predictions._estimated", None)
    scores = score(committed=True)
    assert scores.scored == ()
    assert {entry.reason for entry in scores.not_scored if entry.record.usable} == {"not estimated yet"}


def test_no_median_gets_worse() -> None:
    committed = committed_medians()
    assert committed
    for row in summaries(score(engine="both").scored):
        before = committed[row.source, str(row.level), row.engine]
        assert 100 * row.median <= before + 0.0005, row  # the page has three digits


def test_no_verdict_says_fits_wrongly() -> None:
    scores = score()
    assert scores.judged
    assert scores.wrong_fits == 0


def test_a100_allocated_stays_within_the_goal() -> None:
    rows = [row for row in summaries(score("fms").scored) if row.engine == "estimate"]
    assert [row.level for row in rows] == ["allocated", "device"]
    assert rows[0].median < 0.01


def test_t4_allocated_stays_within_the_goal() -> None:
    (row,) = (row for row in summaries(score("t4").scored) if row.level == "allocated")
    assert row.records == 32
    assert row.median < 0.01


def test_committed_medians_reads_the_first_table_only() -> None:
    page = (
        "| source | level | engine | records | median | p95 | worst | under-predicted |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| t4 | allocated | estimate | 32 | 0.066 % | 0.37 % | -0.41 % | 75 % |\n"
        "## By method\n"
        "| t4 | reserved | estimate | 32 | 9.066 % | 0.37 % | -0.41 % | 75 % |\n"
    )
    assert committed_medians(page) == {("t4", "allocated", "estimate"): 0.066}


def test_text_has_a_line_a_group() -> None:
    text = run_accuracy(source="t4", by="method")
    assert {line.split()[1] for line in text.splitlines() if line.startswith("t4 ")} >= {"lora", "qlora"}
    assert "wrong fits: 0" in text


def test_json_holds_every_scored_record() -> None:
    data = json.loads(run_accuracy(source="t4", by="gpu", format="json"))
    assert data["by"] == "gpu"
    assert data["verdicts"]["wrong_fits"] == 0
    assert len(data["records"]) == 32 * 3
    for entry in data["records"]:
        assert entry["error"] == pytest.approx(entry["predicted_bytes"] / entry["measured_bytes"] - 1)


def test_one_level() -> None:
    lines = run_accuracy(source="t4", level="reserved").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("t4 ")] == ["reserved"]


def test_markdown_is_a_table() -> None:
    lines = run_accuracy(source="t4", format="markdown").splitlines()
    assert lines[0].startswith("| source | level | engine |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_the_html_page_is_self_contained_and_its_plot_well_formed() -> None:
    page = run_accuracy(source="t4", format="html")
    assert "<script" not in page
    assert "http" not in page
    svg = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    root = ET.fromstring(svg)
    dots = [node for node in root.iter("circle") if node.find("title") is not None]
    assert len(dots) == 32 * 3
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < width
        assert 0 < float(dot.attrib["cy"]) < height


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"source": "t44"}, "t4"),
        ({"by": "methods"}, "method"),
        ({"format": "htm"}, "html"),
        ({"engine": "x"}, "both"),
        ({"level": "live"}, "reserved"),
    ],
)
def test_unknown_names_are_refused(keys: dict[str, str], name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        run_accuracy(**keys)  # type: ignore[arg-type]
    assert name in str(caught.value)
