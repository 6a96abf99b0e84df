"""The accuracy report as text, JSON and Markdown; `memplan.evidence.page` has the HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from memplan.estimate import Fits
from memplan.evidence.goals import HEADINGS, goal_rows
from memplan.evidence.records import Level, Record, RecordFile
from memplan.evidence.scoring import By, NotScored, Scored, Scores, Summary, group_of, summaries, verdict_matrix

SUMMARY_HEADINGS = ("source", "level", "engine", "records", "median", "p95", "worst", "under-predicted")


def summary_row(row: Summary) -> tuple[str, ...]:
    """The cells below `SUMMARY_HEADINGS`."""
    return (
        row.source,
        str(row.level),
        row.engine,
        str(row.records),
        f"{100 * row.median:.3f} %",
        f"{100 * row.p95:.2f} %",
        percent(row.worst),
        f"{100 * row.under:.0f} %",
    )


def percent(error: float) -> str:
    """A signed error as percent with two digits."""
    return f"{100 * error:+.2f} %"


def table_rows(scores: Scores, by: By | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the summary, with a column for the group where one was asked for."""
    rows = summaries(scores.scored, by)
    if by is None or by == "source":
        return SUMMARY_HEADINGS, [summary_row(row) for row in rows]
    headings = (SUMMARY_HEADINGS[0], by, *SUMMARY_HEADINGS[1:])
    return headings, [(row.source, row.group, *summary_row(row)[1:]) for row in rows]


# -- text -------------------------------------------------------------------------------------------------


def as_text(scores: Scores, by: By | None) -> str:
    """Aligned columns, then the verdicts, the largest errors and what has no score."""
    headings, rows = table_rows(scores, by)
    parts = ["error = (predicted - measured) / measured", "", aligned(headings, rows), ""]
    parts += _verdict_lines(scores)
    worst = worst_first(scores.scored)[:5]
    if worst:
        parts += ["", "largest errors"]
        parts.append(
            aligned(
                ("record", "level", "engine", "predicted", "measured", "error"),
                [
                    (
                        e.record.id,
                        str(e.level),
                        e.engine,
                        f"{e.predicted_bytes:,}",
                        f"{e.measured_bytes:,}",
                        percent(e.error),
                    )
                    for e in worst
                ],
            )
        )
    reasons = not_scored_reasons(scores.not_scored)
    if reasons:
        parts += ["", "not scored"]
        parts.append(aligned(("source", "engine", "records", "reason"), [tuple(map(str, row)) for row in reasons]))
    return "\n".join(parts).rstrip() + "\n"


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in fixed-width text; columns of numbers are right-aligned."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    )


def _is_number(cell: str) -> bool:
    return cell.replace("%", "").replace(",", "").replace(".", "").strip().lstrip("+-").isdigit()


def worst_first(scored: Iterable[Scored]) -> list[Scored]:
    """Largest absolute error first."""
    return sorted(scored, key=lambda entry: (-abs(entry.error), entry.record.id))


def not_scored_reasons(entries: Iterable[NotScored]) -> list[tuple[str, str, int, str]]:
    """(source, engine, records, reason): every reason once, the most frequent first."""
    counts: dict[tuple[str, str, str], int] = {}
    for entry in entries:
        key = (entry.source, "-" if not entry.record.usable else entry.engine, entry.reason)
        counts[key] = counts.get(key, 0) + 1
    rows = [(source, engine, count, reason) for (source, engine, reason), count in counts.items()]
    return sorted(rows, key=lambda row: (row[0], row[1], -row[2], row[3]))


def _verdict_lines(scores: Scores) -> list[str]:
    if not scores.judged:
        return ["verdicts: none, no scored record names a GPU of the catalog"]
    engines = list(dict.fromkeys(entry.engine for entry in scores.judged))
    lines = []
    for engine in engines:
        judged = [entry for entry in scores.judged if entry.engine == engine]
        whose = f"{engine}: " if len(engines) > 1 else ""
        for limited, under in ((False, ""), (True, " under a limit of the allocator")):
            matrix = verdict_matrix(entry for entry in judged if entry.limited is limited)
            for ran, what in ((True, "finished"), (False, "ran out of memory")):
                counts = ", ".join(f"{matrix[ran, fits]} {fits}" for fits in Fits)
                if any(matrix[ran, fits] for fits in Fits):
                    lines.append(f"{whose}verdicts on runs that {what}{under}: {counts}")
        held = [entry.upper_held for entry in judged if entry.upper_held is not None]
        wrong = sum(entry.wrong_fits for entry in judged)
        lines.append(f"{whose}wrong fits: {wrong}; upper bound held: {sum(held)} of {len(held)}")
    return lines


# -- JSON -------------------------------------------------------------------------------------------------


def as_json(scores: Scores, by: By | None) -> str:
    """Summaries, every scored record, every verdict, and everything without a score."""
    limited = verdict_matrix(entry for entry in scores.judged if entry.limited)
    whole = verdict_matrix(entry for entry in scores.judged if not entry.limited)
    payload: dict[str, Any] = {
        "schema_version": 1,
        "by": by,
        "summaries": [asdict(row) for row in summaries(scores.scored, by)],
        "verdicts": {
            "wrong_fits": scores.wrong_fits,
            "wrong_does_not_fit": sum(entry.wrong_no for entry in scores.judged),
            "finished": {fits: whole[True, fits] for fits in Fits},
            "out_of_memory": {fits: whole[False, fits] for fits in Fits},
            "limited_finished": {fits: limited[True, fits] for fits in Fits},
            "limited_out_of_memory": {fits: limited[False, fits] for fits in Fits},
        },
        "records": [
            {
                "source": entry.source,
                "id": entry.record.id,
                "group": group_of(entry.record, by or "method", entry.source),
                "level": entry.level,
                "engine": entry.engine,
                "predicted_bytes": entry.predicted_bytes,
                "measured_bytes": entry.measured_bytes,
                "error": entry.error,
            }
            for entry in scores.scored
        ],
        "not_scored": [
            {"source": entry.source, "id": entry.record.id, "engine": entry.engine, "reason": entry.reason}
            for entry in scores.not_scored
        ],
    }
    return json.dumps(payload, indent=2) + "\n"


# -- Markdown ---------------------------------------------------------------------------------------------


def as_markdown(scores: Scores, by: By | None) -> str:
    """The summary as one Markdown table, with the verdicts below."""
    headings, rows = table_rows(scores, by)
    return "\n".join([markdown_table(headings, rows), "", *_verdict_lines(scores)]) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(" --- " for _ in headings) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def markdown_page(scores: Scores, files: Sequence[RecordFile]) -> str:
    """The committed page: what was read, what was settled, every summary, every configuration."""
    parts = [
        "# Accuracy",
        "",
        "Measured peaks that other people published, beside what memplan says. Nothing is fitted to them but one length that "
        "PEFT's records leave open, set once for all of them where rank-32 LoRA meets its own. Made by "
        "`python -m memplan.evidence table`; a test fails when this page differs from what the code gives.",
        "",
        "Error = (predicted - measured) / measured. `estimate` is the analytic engine; `trace` runs the real step on fake "
        "CUDA tensors.",
        "",
        markdown_table(SUMMARY_HEADINGS, [summary_row(row) for row in summaries(scores.scored)]),
        "",
        *(f"- {line}" for line in _verdict_lines(scores)),
        "",
        "## Goals",
        "",
        "Absolute errors, source by source; and no wrong fits. A cause stands beside what falls short, as far as it is known.",
        "",
        markdown_table(HEADINGS, goal_rows(scores.scored)),
    ]
    for by in ("method", "family", "gpu", "precision"):
        headings, rows = table_rows(scores, by)
        parts += ["", f"## By {by}", "", markdown_table(headings, rows)]
    for file in files:
        parts += ["", *_source_section(file, [entry for entry in scores.scored if entry.source == file.name])]
    parts += [
        "",
        "## Not scored",
        "",
        markdown_table(
            ("source", "engine", "records", "reason"),
            [tuple(map(str, row)) for row in not_scored_reasons(scores.not_scored)],
        ),
    ]
    return "\n".join(parts) + "\n"


def _source_section(file: RecordFile, scored: Sequence[Scored]) -> list[str]:
    lines = [f"## {file.title}", "", f"`--source {file.name}`, {len(file.records)} records. What was read:", ""]
    lines += [f"- {level}: {text}" for level, text in file.quantities.items()]
    if file.settled:
        lines += ["", "What the source leaves open:", ""]
        for entry in file.settled.values():
            value = "" if entry.value is None else f" = {json.dumps(entry.value)}"
            lines.append(f"- `{entry.key}`{value} ({entry.how}): {entry.reason}.")
    rows = _configuration_rows(scored)
    if rows:
        lines += ["", markdown_table(("configuration", "runs", "level", "measured bytes", "estimate", "trace"), rows)]
    return lines


def _configuration_rows(scored: Sequence[Scored]) -> list[tuple[str, ...]]:
    """One row for each configuration and level: the range of the runs, and the range of the errors by engine."""
    groups: dict[tuple[str, Level], dict[str, list[Scored]]] = {}
    for entry in scored:
        key = (_configuration(entry.record), entry.level)
        groups.setdefault(key, {}).setdefault(entry.engine, []).append(entry)
    rows = []
    for (name, level), engines in groups.items():
        runs = next(iter(engines.values()))
        rows.append(
            (
                name,
                str(len(runs)),
                str(level),
                _range([entry.measured_bytes for entry in runs], "{:,}".format),
                *(_range([e.error for e in engines.get(engine, ())], percent) for engine in ("estimate", "trace")),
            )
        )
    return rows


def _configuration(record: Record) -> str:
    return record.group or record.id


def _range(values: Sequence[Any], form: Any) -> str:
    if not values:
        return "-"
    low, high = form(min(values)), form(max(values))
    return str(low) if low == high else f"{low} to {high}"
