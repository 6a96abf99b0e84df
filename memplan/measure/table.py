"""The tables that a campaign prints: what would be run, and what came out of it. Plain text, for a log."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.measure.campaign import Planned, Report
from memplan.units import format_bytes


def plan_table(planned: Sequence[Planned]) -> str:
    """What a GPU would be asked: one line a cell, with predicted bytes and planned seconds."""
    rows = []
    elapsed = 0.0
    for entry in planned:
        elapsed += entry.seconds
        predicted = entry.prediction
        rows.append(
            (
                entry.cell.name,
                f"{entry.seconds:.0f}",
                f"{elapsed / 60:.1f}",
                "-" if predicted.reason else format_bytes(predicted.allocated_bytes),
                "-" if predicted.reason else format_bytes(predicted.reserved_bytes),
                format_bytes(entry.capacity_bytes) if entry.capacity_bytes is not None else "",
                entry.cell.asks,
            )
        )
    return _aligned(("cell", "s", "min", "allocated", "reserved", "limit", "what it is for"), rows)


def report_line(report: Report) -> str:
    """One line as soon as a cell is done."""
    return "  ".join(_cells(report)).rstrip()


def summary_table(reports: Sequence[Report]) -> str:
    """Every cell that ran, with the reading, how far the prediction is from it, and what went wrong."""
    headings = ("cell", "outcome", "s", "allocated", "estimate", "reserved", "estimate", "device", "")
    rows = [_cells(report) for report in reports]
    counts: dict[str, int] = {}
    for report in reports:
        counts[report.status] = counts.get(report.status, 0) + 1
    line = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing ran"
    return f"{_aligned(headings, rows)}\n{line}\n"


def _cells(report: Report) -> tuple[str, ...]:
    result, predicted = report.result, report.planned.prediction
    name = report.planned.cell.name + (f" #{report.repeat}" if report.repeat else "")
    head = (name, report.status, f"{report.seconds:.1f}")
    if result is None:
        return (*head, "-", "-", "-", "-", "-", report.message.splitlines()[0] if report.message else "")
    reached = result.outcome == "ok"
    death = result.death
    return (
        *head,
        format_bytes(result.max_allocated_bytes),
        _error(predicted.allocated_bytes, result.max_allocated_bytes) if reached else "-",
        format_bytes(result.max_reserved_bytes) if result.max_reserved_bytes is not None else "-",
        _error(predicted.reserved_bytes, result.max_reserved_bytes) if reached else "-",
        format_bytes(result.max_device_bytes) if result.max_device_bytes is not None else "-",
        f"died in the {death.where}" if death is not None else "",
    )


def _error(predicted: int, measured: int | None) -> str:
    return f"{100 * (predicted - measured) / measured:+.2f} %" if predicted and measured else "-"


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    )
