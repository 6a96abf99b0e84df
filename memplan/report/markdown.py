"""A report as GitHub-flavoured Markdown, for pull requests, issues and job summaries."""

from __future__ import annotations

from collections.abc import Iterable

from memplan.report.tree import Bar, Block, Bullets, Facts, Headline, Paragraph, Report, Table


def to_markdown(report: Report) -> str:
    """The report as Markdown. Bars are left out: the table beside them has the same numbers."""
    parts = [_block(block) for block in report.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """`text` so that Markdown shows it as it is, also in a cell of a table."""
    for sign in "\\`*_|[]<>~#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _block(block: Block) -> str:
    match block:
        case Headline():
            return f"**{escape(block.word)}** {escape(block.text)}".strip()
        case Bar():
            return ""
        case Table():
            return _titled(block.title, _table(block))
        case Facts():
            return _titled(block.title, "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in block.rows))
        case Bullets():
            return _titled(block.title, "\n".join(f"- {escape(item)}" for item in block.items))
        case Paragraph():
            return escape(block.text)


def _titled(title: str, body: str) -> str:
    return f"#### {escape(title)}\n\n{body}" if title else body


def _table(table: Table) -> str:
    head = _row(escape(column.title) for column in table.columns)
    rule = "|" + "|".join("--:" if column.align == "right" else "---" for column in table.columns) + "|"
    rows = []
    for index, cells in enumerate(table.rows):
        texts = [escape(cell) for cell in cells]
        if index in table.strong:
            texts = [f"**{text}**" if text else "" for text in texts]
        rows.append(_row(texts))
    return "\n".join([head, rule, *rows])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
