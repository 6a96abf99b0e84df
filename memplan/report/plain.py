"""A report as plain text: no colour, no boxes, no width; made to be piped, searched and compared."""

from __future__ import annotations

from memplan.report.tree import Bar, Block, Bullets, Facts, Headline, Paragraph, Report, Table

_GAP = "  "


def to_text(report: Report) -> str:
    """The report as lines of text. Bars are left out: the table beside them has the same numbers."""
    parts = [_block(block) for block in report.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Headline():
            return block.sentence
        case Bar():
            return ""
        case Table():
            return _table(block)
        case Facts():
            width = max((len(name) for name, _ in block.rows), default=0)
            lines = [f"{name:<{width}}{_GAP}{value}".rstrip() for name, value in block.rows]
            return "\n".join(([block.title] if block.title else []) + lines)
        case Bullets():
            return "\n".join([block.title, *(f"- {item}" for item in block.items)])
        case Paragraph():
            return block.text


def _table(table: Table) -> str:
    lines = [tuple(column.title for column in table.columns), *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    text = [
        _GAP.join(
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join(([table.title] if table.title else []) + text)
