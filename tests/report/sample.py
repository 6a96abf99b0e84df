"""A report with every kind of block."""

from __future__ import annotations

from memplan.report import Bar, Bullets, Column, Facts, Headline, Paragraph, Report, Segment, Table
from memplan.units import GIB

SAMPLE = Report(
    (
        Headline("Fits", "on a card", "good"),
        Bar((Segment("weights", 4 * GIB), Segment("activations", 2 * GIB)), 12 * GIB, 8 * GIB),
        Facts((("run", "model_x, lora"), ("peak", "step 2")), "Facts"),
        Table(
            (Column("component"), Column("bytes", "right"), Column("note", fit="wrap")),
            (("weights", "4.00 GiB", "a|b"), ("live", "6.00 GiB", "")),
            "At the peak",
            frozenset({1}),
        ),
        Bullets("Assumptions", ("one *thing*", "another")),
        Paragraph("The end."),
    )
)
