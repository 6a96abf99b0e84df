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
    for column in table.columns:
        grid.add_column(
            Text(column.title),
            justify=column.align,
            no_wrap=not column.flexible,
            overflow="fold" if column.flexible else "ellipsis",
        )
    for index, cells in enumerate(table.rows):
        grid.add_row(*(Text(cell) for cell in cells), style="bold" if index in table.strong else None)
    _print(console, grid)


def _natural_width(table: Table) -> int:
    lines = [tuple(column.title for column in table.columns), *table.rows]
    return sum(max(len(line[index]) for line in lines) + _GAP for index in range(len(table.columns)))


def stack(table: Table) -> Table:
    """`table` with its stacked columns in one cell each, one text below the other."""
    groups = [list(group) for group in table.stacked]
    inside = {index for group in groups for index in group[1:]}
    chosen = [
        next((group for group in groups if group[0] == index), [index])
        for index in range(len(table.columns))
        if index not in inside
    ]
    columns = []
    for group in chosen:
        first = table.columns[group[0]]
        title = " / ".join(table.columns[index].title for index in group)
        columns.append(Column(title, first.align, flexible=any(table.columns[index].flexible for index in group)))
    rows = tuple(
        tuple("\n".join(filter(None, (cells[index] for index in group))) for group in chosen) for cells in table.rows
    )
    return Table(tuple(columns), rows, table.title, table.strong)
