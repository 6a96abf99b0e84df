"""A report on a terminal, with rich: colour, a bar against the card, tables that fit the width."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from memplan.report.bar import Cell, bar_cells, legend_labels
from memplan.report.tree import Bar, Block, Bullets, Column, Facts, Headline, Paragraph, Report, Table, Tone

_TONES: dict[Tone, str] = {"good": "bold green", "bad": "bold red", "unsure": "bold yellow", "neutral": "bold"}
_SIGNS: dict[Tone, str] = {"good": "✓", "bad": "✗", "unsure": "?", "neutral": "•"}
# One colour a segment; sixteen-colour names, so that they follow the terminal's theme.
_COLOURS = (
    "blue",
    "cyan",
    "magenta",
    "green",
    "yellow",
    "red",
    "bright_blue",
    "bright_cyan",
    "bright_magenta",
    "bright_green",
    "bright_yellow",
    "bright_red",
    "bright_black",
)
_MAX_WIDTH = 120
_GAP = 2
_MARGIN = 1
_NARROWEST = 16


def print_report(report: Report, stream: TextIO, *, width: int | None = None, colour: bool = True) -> None:
    """Draw `report` on `stream`.

    Args:
        report: what to say.
        stream: a terminal.
        width: columns; by default those of the terminal, at most 120.
        colour: False draws without colour, as NO_COLOR does.
    """
    plain = not colour or bool(os.environ.get("NO_COLOR"))
    console = Console(file=stream, width=width, no_color=plain, highlight=False, soft_wrap=False)
    console = console if console.width <= _MAX_WIDTH else Console(file=stream, width=_MAX_WIDTH, no_color=plain)
    for index, block in enumerate(report.blocks):
        if index:
            console.print()
        _draw(block, console)


def _draw(block: Block, console: Console) -> None:
    match block:
        case Headline():
            text = Text(f"{_SIGNS[block.tone]} {block.word}", _TONES[block.tone])
            _print(console, text.append(f" {block.text}", "default not bold"))
        case Bar():
            _draw_bar(block, console)
        case Table():
            _draw_table(block, console)
        case Facts():
            _draw_facts(block, console)
        case Bullets():
            _title(console, block.title, _TONES[block.tone])
            grid = RichTable.grid(padding=(0, 1))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for item in block.items:
                grid.add_row("·", Text(item))
            _print(console, grid)
        case Paragraph():
            _print(console, Text(block.text))


def _print(console: Console, content: object) -> None:
    console.print(Padding(content, (0, _MARGIN)), highlight=False)  # type: ignore[arg-type]  # any renderable


def _title(console: Console, title: str, style: str = "bold") -> None:
    if title:
        _print(console, Text(title, style))


def _draw_bar(bar: Bar, console: Console) -> None:
    width = console.width - 2 * _MARGIN
    line = Text()
    for cell in bar_cells(bar, width):
        if cell.kind is Cell.FREE:
            line.append("·", "bright_black")
        elif cell.kind is Cell.MARGIN:
            line.append("░", "bright_black")
        elif cell.kind is Cell.OVER:
            line.append("▓", _COLOURS[cell.segment % len(_COLOURS)])
        else:
            line.append("█", _COLOURS[cell.segment % len(_COLOURS)])
    _print(console, line)
    legend = Text()
    for index, label in legend_labels(bar):
        mark = Text("■ ", _COLOURS[index % len(_COLOURS)] if index >= 0 else "bright_black").append(label, "default")
        if legend and len(legend.plain.rsplit("\n", 1)[-1]) + 2 + len(mark.plain) > width:
            legend.append("\n")
        elif legend:
            legend.append("  ")
        legend.append_text(mark)
    _print(console, legend)


def _draw_facts(facts: Facts, console: Console) -> None:
    _title(console, facts.title)
    grid = RichTable.grid(padding=(0, _GAP))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.rows:
        grid.add_row(Text(name), Text(value))
    _print(console, grid)


def _draw_table(table: Table, console: Console) -> None:
    _title(console, table.title)
    width = console.width - 2 * _MARGIN
    if table.stacked and _natural_width(table) > width:
        table = stack(table)
    grid = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bright_black", show_edge=False)
    for column, natural, fitted in zip(table.columns, _widths(table), _fitted_widths(table, width), strict=True):
        grid.add_column(
            Text(column.title),
            justify=column.align,
            no_wrap=column.fit != "wrap",
            overflow="fold" if column.fit == "wrap" else "ellipsis",
            width=fitted if fitted < natural or column.fit == "keep" else None,
        )
    for index, cells in enumerate(table.rows):
        grid.add_row(*(Text(cell) for cell in cells), style="bold" if index in table.strong else None)
    _print(console, grid)


def _widths(table: Table) -> list[int]:
    lines = [tuple(column.title for column in table.columns), *table.rows]
    return [max(len(part) for line in lines for part in line[index].split("\n")) for index in range(len(table.columns))]


def _natural_width(table: Table) -> int:
    return sum(_widths(table)) + _GAP * (len(table.columns) - 1)


def _fitted_widths(table: Table, width: int) -> list[int]:
    """Widths of the columns, with what is too much taken from those that may be cut or wrapped, the last one first."""
    widths = _widths(table)
    excess = _natural_width(table) - width
    for fit in ("wrap", "cut"):
        for index in reversed(range(len(widths))):
            if table.columns[index].fit == fit and excess > 0:
                taken = min(excess, widths[index] - min(widths[index], _NARROWEST))
                widths[index] -= taken
                excess -= taken
    return widths


def stack(table: Table) -> Table:
    """`table` with its stacked columns in one last cell, line by line."""
    first = min(index for line in table.stacked for index in line)
    title = ", ".join(table.columns[line[0]].title for line in table.stacked)
    columns = (*table.columns[:first], Column(title, fit="wrap"))
    rows = tuple((*cells[:first], _lines(table, cells)) for cells in table.rows)
    return Table(columns, rows, table.title, table.strong)


def _lines(table: Table, cells: tuple[str, ...]) -> str:
    lines = ("  ".join(filter(None, (cells[index] for index in line))) for line in table.stacked)
    return "\n".join(line for line in lines if line)
