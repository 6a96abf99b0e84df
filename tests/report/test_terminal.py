"""Terminals: widths from 40 columns up, with and without colour."""

from __future__ import annotations

import io

import pytest

from memplan.report import Column, Report, Table
from memplan.report.terminal import print_report, stack
from tests.report.sample import SAMPLE


def _drawn(report: Report, width: int) -> list[str]:
    stream = io.StringIO()
    print_report(report, stream, width=width, colour=False)
    return stream.getvalue().splitlines()


def test_every_block() -> None:
    lines = [line.rstrip() for line in _drawn(SAMPLE, 60)]
    assert lines == [
        " ✓ Fits on a card",
        "",
        " " + "█" * 29 + "░" * 10 + "·" * 19,
        " ■ weights 4.00 GiB  ■ activations 2.00 GiB",
        " ■ margin 2.00 GiB",
        "",
        " Facts",
        " run   model_x, lora",
        " peak  step 2",
        "",
        " At the peak",
        " component     bytes  note",
        " weights    4.00 GiB  a|b",
        " live       6.00 GiB",
        "",
        " Assumptions",
        " · one *thing*",
        " · another",
        "",
        " The end.",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, _drawn(SAMPLE, width))) <= min(width, 120)


def test_what_may_be_cut_is_cut_and_nothing_else() -> None:
    table = Table((Column("id"), Column("source", fit="cut")), (("rtx-4090", "x" * 100),))
    lines = _drawn(Report((table,)), 40)
    assert lines[1].rstrip().startswith(" rtx-4090  xxxx")
    assert lines[1].rstrip().endswith("…")
    assert len(lines) == 2


def test_what_may_be_wrapped_is_wrapped() -> None:
    table = Table((Column("key"), Column("why", fit="wrap")), (("k", "word " * 20),))
    lines = _drawn(Report((table,)), 40)
    assert "".join(lines).count("word") == 20


def test_columns_are_stacked_only_where_the_width_does_not_suffice() -> None:
    table = Table(
        (Column("bytes", "right"), Column("module", fit="wrap"), Column("op"), Column("formula")),
        (("1", "m" * 40, "add", "B·S"),),
        stacked=((1,), (2, 3)),
    )
    assert len(_drawn(Report((table,)), 80)) == 2
    assert [line.strip() for line in _drawn(Report((table,)), 50)] == [
        "bytes  module, op",
        f"1  {'m' * 40}",
        "add  B·S",
    ]


def test_stacked_cells_leave_out_what_is_empty() -> None:
    table = Table((Column("a"), Column("b"), Column("c")), (("1", "", "x"),), stacked=((1,), (2,)))
    assert stack(table).rows == (("1", "x"),)


def test_markup_in_text_is_text() -> None:
    report = Report((Table((Column("a"),), (("[bold]x[/bold]",),)),))
    assert _drawn(report, 40)[1].strip() == "[bold]x[/bold]"
