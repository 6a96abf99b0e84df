"""Markdown: tables that survive any text."""

from __future__ import annotations

import pytest

from memplan.report import Column, Report, Table
from memplan.report.markdown import escape, to_markdown
from tests.report.sample import SAMPLE


def test_every_block() -> None:
    assert (
        to_markdown(SAMPLE)
        == """\
**Fits** on a card

#### Facts

- run: model\\_x, lora
- peak: step 2

#### At the peak

| component | bytes | note |
|---|--:|---|
| weights | 4.00 GiB | a\\|b |
| **live** | **6.00 GiB** |  |

#### Assumptions

- one \\*thing\\*
- another

The end.
"""
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("<script>", "\\<script\\>"),
        ("[x](y)", "\\[x\\](y)"),
        ("a\nb\tc", "a b c"),
        ("back\\slash `code`", "back\\\\slash \\`code\\`"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_a_cell_cannot_break_its_table() -> None:
    report = Report((Table((Column("a"), Column("b")), (("x | y\n| z", "<b>"),)),))
    assert to_markdown(report).splitlines()[2] == "| x \\| y \\| z | \\<b\\> |"
