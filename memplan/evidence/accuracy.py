"""`memplan accuracy`, and what is committed of it: the page `ACCURACY.md` and the estimates behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from memplan.errors import UnknownNameError
from memplan.evidence.page import as_html
from memplan.evidence.predictions import ESTIMATED_FILE, estimated_text
from memplan.evidence.records import Level, select_files
from memplan.evidence.render import SUMMARY_HEADINGS, as_json, as_markdown, as_text, markdown_page
from memplan.evidence.scoring import By, at_level, score

Format = Literal["text", "json", "markdown", "html"]
Engine = Literal["estimate", "trace", "both"]

ACCURACY_FILE = Path(__file__).resolve().parent / "ACCURACY.md"


def run_accuracy(
    source: str | None = None,
    by: str | None = None,
    format: Format = "text",  # noqa: A002 (the CLI's option)
    engine: Engine = "estimate",
    level: str | None = None,
    *,
    committed: bool = False,
) -> str:
    """Score predictions against the committed records and say how good they are.

    Args:
        source: a source of records; None for all.
        by: `source`, `method`, `family`, `gpu` or `precision`; None for one line a source.
        format: `text`, `json`, `markdown`, or `html` (one page with a plot).
        engine: which of memplan's answers; `trace` uses the committed traces.
        level: `allocated`, `reserved` or `device`; None for all.
        committed: whether the committed estimates are scored instead of new ones.

    Raises:
        UnknownNameError: a source, group, format, engine or level that does not exist.
    """
    group = _one_of("group", by, get_args(By)) if by is not None else None
    _one_of("format", format, get_args(Format))
    _one_of("engine", engine, get_args(Engine))
    if level is not None:
        _one_of("level", level, tuple(Level))
    scores = score(source, engine=engine, committed=committed)
    if level is not None:
        scores = at_level(scores, Level(level))
    if format == "json":
        return as_json(scores, group)
    if format == "markdown":
        return as_markdown(scores, group)
    if format == "html":
        return as_html(scores, group)
    return as_text(scores, group)


def _one_of(kind: str, name: str, allowed: tuple[By, ...] | tuple[str, ...]) -> By:
    if name not in allowed:
        raise UnknownNameError(kind, name, allowed)
    return name  # type: ignore[return-value]


def accuracy_page() -> str:
    """What `ACCURACY.md` must hold: every record, estimate and committed traces."""
    return markdown_page(score(engine="both"), select_files())


def write_accuracy_page() -> None:
    """Regenerate `ACCURACY.md` and `estimated.json`."""
    ACCURACY_FILE.write_text(accuracy_page(), encoding="utf-8")
    ESTIMATED_FILE.write_text(committed_estimates(), encoding="utf-8")


def committed_estimates() -> str:
    """What `estimated.json` must hold: what the engine says about every record."""
    return estimated_text(record for file in select_files() for record in file.records)


def committed_medians(page: str | None = None) -> dict[tuple[str, str, str], float]:
    """Median absolute error in percent by (source, level, engine), as the first table of `ACCURACY.md` gives it."""
    text = ACCURACY_FILE.read_text(encoding="utf-8") if page is None else page
    found = {}
    for line in text.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(SUMMARY_HEADINGS) and cells[3].isdigit():
            found[cells[0], cells[1], cells[2]] = float(cells[4].removesuffix(" %"))
    return found


__all__ = [
    "ACCURACY_FILE",
    "Engine",
    "Format",
    "accuracy_page",
    "committed_estimates",
    "committed_medians",
    "run_accuracy",
    "write_accuracy_page",
]
