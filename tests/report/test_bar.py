"""The bar against a card."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memplan.report import Bar, Segment
from memplan.report.bar import Cell, bar_cells, legend_labels
from memplan.units import GIB

SIGNS = {Cell.USED: "#", Cell.OVER: "!", Cell.MARGIN: "-", Cell.FREE: "."}


def _drawn(bar: Bar, width: int) -> str:
    return "".join(SIGNS[cell.kind] for cell in bar_cells(bar, width))


def _bar(whole: int, *sizes: int, upper: int | None = None) -> Bar:
    return Bar(tuple(Segment(str(index), size * GIB) for index, size in enumerate(sizes)), whole * GIB, upper)


def test_used_margin_free() -> None:
    assert _drawn(_bar(12, 4, 2, upper=8 * GIB), 12) == "######--...."


def test_segments_follow_each_other() -> None:
    assert [cell.segment for cell in bar_cells(_bar(12, 4, 2), 6)] == [0, 0, 1, -1, -1, -1]


def test_too_much_is_drawn_beyond_the_card() -> None:
    assert _drawn(_bar(10, 15, 5, upper=30 * GIB), 20) == "##########!!!!!!!!!!"


def test_nothing_used() -> None:
    assert _drawn(Bar((), 0), 4) == "...."


def test_the_legend_leaves_out_what_cannot_be_seen() -> None:
    bar = Bar((Segment("weights", 4 * GIB), Segment("buffers", 512)), 24 * GIB, 6 * GIB)
    assert legend_labels(bar) == [(0, "weights 4.00 GiB"), (-1, "margin 2.00 GiB")]


def test_the_legend_has_no_margin_where_the_card_is_full() -> None:
    assert legend_labels(_bar(4, 8, upper=10 * GIB)) == [(0, "0 8.00 GiB")]


@given(
    sizes=st.lists(st.integers(0, 2**40), max_size=8),
    whole=st.integers(1, 2**40),
    upper=st.none() | st.integers(0, 2**41),
    width=st.integers(1, 200),
)
def test_the_bar_has_its_width_and_keeps_the_order(sizes: list[int], whole: int, upper: int | None, width: int) -> None:
    cells = bar_cells(Bar(tuple(Segment("s", size) for size in sizes), whole, upper), width)
    assert len(cells) == width
    order = [cell.segment for cell in cells if cell.segment >= 0]
    assert order == sorted(order)
    kinds = [cell.kind for cell in cells]
    assert kinds == sorted(kinds, key=lambda kind: kind.value)
