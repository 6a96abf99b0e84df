"""What a report says, apart from how it looks: a few kinds of blocks that every renderer draws in its own way.

`memplan.report.plain`, `memplan.report.terminal` and `memplan.report.markdown` render the same tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["good", "bad", "unsure", "neutral"]
Align: TypeAlias = Literal["left", "right"]
# What happens to a column's text where the width does not suffice: nothing, further lines, or an ellipsis.
Fit: TypeAlias = Literal["keep", "wrap", "cut"]


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer in one sentence. `word` begins it and carries the tone; the text never depends on colour."""

    word: str
    text: str
    tone: Tone = "neutral"

    @property
    def sentence(self) -> str:
        """Word and text together."""
        return f"{self.word} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a bar."""

    label: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Bar:
    """Segments against a whole.

    Attributes:
        segments: from the left; those too small to be seen are drawn with their neighbours.
        whole_bytes: what the full width stands for.
        upper_bytes: where the upper bound lies; None for none.
    """

    segments: tuple[Segment, ...]
    whole_bytes: int
    upper_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    align: Align = "left"
    fit: Fit = "keep"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        strong: indices of rows that sum up others.
        stacked: lines of column indices. Where the width does not suffice, the last columns of the table stand in one
            cell with these lines.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    strong: frozenset[int] = frozenset()
    stacked: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences of one kind."""

    title: str
    items: tuple[str, ...]
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text as it is."""

    text: str


Block: TypeAlias = Headline | Bar | Table | Facts | Bullets | Paragraph


@dataclass(frozen=True, slots=True)
class Report:
    """Blocks from top to bottom."""

    blocks: tuple[Block, ...] = field(default_factory=tuple)
