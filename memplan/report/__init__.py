"""Reports: what is said (`memplan.report.tree`), and how it looks in a terminal, in a pipe and in Markdown."""

from __future__ import annotations

from memplan.report.tree import (
    Bar,
    Block,
    Bullets,
    Column,
    Facts,
    Headline,
    Paragraph,
    Report,
    Segment,
    Table,
)

__all__ = ["Bar", "Block", "Bullets", "Column", "Facts", "Headline", "Paragraph", "Report", "Segment", "Table"]
