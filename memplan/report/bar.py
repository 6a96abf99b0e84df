"""The bar against a card: which character cell belongs to what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from memplan.report.tree import Bar
from memplan.units import format_bytes


class Cell(Enum):
    """What a character of the bar stands for."""

    USED = auto()
    OVER = auto()  # used, beyond the whole
    MARGIN = auto()  # between what is expected and the upper bound
    FREE = auto()


@dataclass(frozen=True, slots=True)
class BarCell:
    """One character; `segment` is the index of its segment, -1 where it belongs to none."""

    kind: Cell
    segment: int = -1


def bar_cells(bar: Bar, width: int) -> list[BarCell]:
    """`width` characters: segments, the margin up to the upper bound, what is free.

    A bar whose segments exceed the whole is drawn to the scale of the segments; what lies beyond the whole is OVER.
    """
    used = sum(segment.size_bytes for segment in bar.segments)
    scale = max(bar.whole_bytes, used, 1)
    edges = []
    position = 0
    for segment in bar.segments:
        position += segment.size_bytes
        edges.append(round(position * width / scale))
    whole = round(bar.whole_bytes * width / scale)
    upper = round(min(bar.upper_bytes or 0, scale) * width / scale)
    cells = []
    segment_index = 0
    for column in range(width):
        while segment_index < len(edges) and column >= edges[segment_index]:
            segment_index += 1
        if segment_index < len(edges):
            cells.append(BarCell(Cell.OVER if column >= whole else Cell.USED, segment_index))
        elif column < upper:
            cells.append(BarCell(Cell.MARGIN))
        else:
            cells.append(BarCell(Cell.FREE))
    return cells


def legend_labels(bar: Bar) -> list[tuple[int, str]]:
    """Index of the segment and its label with its size, for segments of at least half a percent of the whole."""
    smallest = bar.whole_bytes // 200
    found = [
        (index, f"{segment.label} {format_bytes(segment.size_bytes)}")
        for index, segment in enumerate(bar.segments)
        if segment.size_bytes >= smallest
    ]
    used = sum(segment.size_bytes for segment in bar.segments)
    if bar.upper_bytes is not None and used < bar.upper_bytes and used <= bar.whole_bytes:
        found.append((-1, f"margin {format_bytes(bar.upper_bytes - used)}"))
    return found
