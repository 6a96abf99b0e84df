"""The report of a comparison: estimate and trace of one recipe side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memplan.compare import Comparison, PhaseDifference
from memplan.report.tree import Block, Bullets, Column, Headline, Paragraph, Report, Table
from memplan.report.wording import model_name, phase_name

if TYPE_CHECKING:
    from memplan.agreement import Result

_COLUMNS = (
    Column("Step"),
    Column("Phase"),
    Column("Estimate", "right"),
    Column("Trace", "right"),
    Column("Difference", "right"),
    Column("At", fit="wrap"),
)


def comparison_report(comparison: Comparison) -> Report:
    """Peak and end of every phase in both answers, in bytes: what is compared is exact."""
    name = model_name({"model": comparison.recipe.model})
    if comparison.refusal:
        return Report((Headline("Nothing to compare", f"for {name}", "unsure"), Paragraph(comparison.refusal)))
    if comparison.is_equal:
        headline = Headline("Equal", f"for {name}: estimate and trace agree to the byte in every phase", "good")
    else:
        deviating = sum(not phase.is_equal for phase in comparison.phases)
        text = (
            f"for {name} in {deviating} of {len(comparison.phases)} phases, by {comparison.worst_fraction:.3%} at most"
        )
        headline = Headline("Different", text, "bad")
    blocks: list[Block] = [headline, _table("Peaks, live bytes", comparison, _peak), _table("Ends", comparison, _end)]
    also = [] if comparison.parameters_equal else ["the numbers of parameters differ"]
    also += [layer.difference for layer in comparison.layers if not layer.is_equal]
    if also:
        blocks.append(Bullets("Also", tuple(also), "bad"))
    else:
        blocks.append(Paragraph("The tensors that each layer saves for backward are the same, entry by entry."))
    return Report(tuple(blocks))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The same for programs, with the saved tensors of every layer."""
    return {
        **_summary(comparison),
        "layers": [
            {
                "layer": layer.layer,
                "equal": layer.is_equal,
                "estimate": [{"bytes": entry.block_bytes, "op": entry.op} for entry in layer.estimate],
                "trace": [{"bytes": entry.block_bytes, "op": entry.op} for entry in layer.trace],
            }
            for layer in comparison.layers
        ],
    }


def _summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "equal": comparison.is_equal,
        "parameters_equal": comparison.parameters_equal,
        "refusal": comparison.refusal,
        "saved_tensors_equal": comparison.saves_the_same,
        "largest_difference": comparison.worst_fraction,
        "phases": [
            {
                "step": phase.step,
                "phase": phase.phase,
                "estimate": {
                    "peak_bytes": phase.estimate_peak_bytes,
                    "end_bytes": phase.estimate_end_bytes,
                    "at": phase.estimate_at,
                },
                "trace": {
                    "peak_bytes": phase.trace_peak_bytes,
                    "end_bytes": phase.trace_end_bytes,
                    "at": phase.trace_at,
                },
            }
            for phase in comparison.phases
        ],
    }


def sample_json(results: Sequence[Result], *, meets_goal: bool) -> dict[str, Any]:
    """The answers of a sample for programs, every cell with its choices."""
    return {
        "cells": len(results),
        "exact": sum(result.comparison.is_equal for result in results),
        "same_saved_tensors": sum(result.comparison.saves_the_same for result in results),
        "meets_goal": meets_goal,
        "results": [
            {"model_type": entry.cell.model_type, "choices": entry.cell.choices, **_summary(entry.comparison)}
            for entry in results
        ],
    }


def _table(title: str, comparison: Comparison, row: Any) -> Table:
    rows = tuple(row(phase) for phase in comparison.phases)
    return Table(_COLUMNS[: len(rows[0])], rows, title)


def _peak(phase: PhaseDifference) -> tuple[str, ...]:
    at = phase.trace_at if phase.estimate_at == phase.trace_at else f"{phase.estimate_at} / {phase.trace_at}"
    return (*_row(phase, phase.estimate_peak_bytes, phase.trace_peak_bytes), at)


def _end(phase: PhaseDifference) -> tuple[str, ...]:
    return _row(phase, phase.estimate_end_bytes, phase.trace_end_bytes)


def _row(phase: PhaseDifference, mine: int, theirs: int) -> tuple[str, ...]:
    difference = f"{mine - theirs:+,}" if mine != theirs else "0"
    step = str(phase.step) if phase.step else ""
    return (step, phase_name(phase.phase), f"{mine:,}", f"{theirs:,}", difference)
