"""The accuracy report as one HTML page without scripts or outside files."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from memplan.evidence.plot import scatter
from memplan.evidence.render import not_scored_reasons, percent, table_rows, worst_first
from memplan.evidence.scoring import By, Scores

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .75rem; text-align: left; border-bottom: 1px solid #8884; }
svg { width: 100%; max-width: 40rem; font-size: 12px; }
svg text { fill: currentColor; }
.grid { stroke: #8883; fill: none; }
.diagonal { stroke: currentColor; stroke-opacity: .5; stroke-dasharray: 4 4; fill: none; }
"""


def as_html(scores: Scores, by: By | None) -> str:
    """Plot, summary, every record by its error, and everything without a score."""
    headings, rows = table_rows(scores, by)
    records = [
        (
            entry.source,
            entry.record.id,
            str(entry.level),
            entry.engine,
            f"{entry.measured_bytes:,}",
            f"{entry.predicted_bytes:,}",
            percent(entry.error),
        )
        for entry in worst_first(scores.scored)
    ]
    missing = [tuple(map(str, row)) for row in not_scored_reasons(scores.not_scored)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>memplan accuracy</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style></head><body>",
            "<h1>Predicted against measured</h1>",
            "<p>Error = (predicted − measured) / measured. "
            f"Wrong <code>fits</code>: {scores.wrong_fits} of {len(scores.judged)} verdicts.</p>",
            scatter(scores.scored),
            "<h2>Summary</h2>",
            _table(headings, rows),
            "<h2>Records, largest error first</h2>",
            _table(("source", "record", "level", "engine", "measured bytes", "predicted bytes", "error"), records),
            "<h2>Not scored</h2>",
            _table(("source", "engine", "records", "reason"), missing),
            "</body></html>",
            "",
        ]
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
