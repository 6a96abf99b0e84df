"""Plain text: for pipes, so every character counts."""

from __future__ import annotations

from memplan.report import Bar, Facts, Report
from memplan.report.plain import to_text
from tests.report.sample import SAMPLE


def test_every_block() -> None:
    assert (
        to_text(SAMPLE)
        == """\
Fits on a card

Facts
run   model_x, lora
peak  step 2

At the peak
component     bytes  note
weights    4.00 GiB  a|b
live       6.00 GiB

Assumptions
- one *thing*
- another

The end.
"""
    )


def test_no_line_ends_in_blanks() -> None:
    assert [line for line in to_text(SAMPLE).splitlines() if line != line.rstrip()] == []


def test_nothing_to_say() -> None:
    assert to_text(Report((Bar((), 1), Facts(())))) == "\n"
