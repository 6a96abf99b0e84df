"""The report of a receipt: every line alive at the peak with its formula, by component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memplan.estimate import Component, Estimate, Line
from memplan.report.tree import Block, Bullets, Column, Headline, Paragraph, Report, Table
from memplan.report.wording import component_name, counted, gib, model_name, moment, share
from memplan.units import format_bytes

_COLUMNS = (
    Column("bytes", "right"),
    Column("share", "right"),
    Column("count", "right"),
    Column("module", fit="wrap"),
    Column("op", fit="wrap"),
    Column("formula", fit="wrap"),
    Column("in numbers", fit="wrap"),
)
_STACKED = ((3,), (4,), (5, 6))
# Symbols as memplan.step.tensor names the dimensions.
_LEGEND = (
    "B batch, S sequence, H hidden, I intermediate, V vocabulary, A heads, K key/value heads, D head size, "
    "E rows evaluated or generated, P prompt, T targets or cached tokens; "
    "× bytes per element; every storage is rounded up to 512 bytes."
)


def receipt_report(
    estimate: Estimate, *, components: Sequence[Component] = (), top: int = 8, classic_hint: bool = True
) -> Report:
    """What is alive at the peak, line by line.

    Args:
        estimate: the answer.
        components: only these; all where empty.
        top: lines a component, the largest; 0 for all. The rest is summed in a line of its own.
        classic_hint: whether to point at the classic accounting.
    """
    peak = estimate.peak
    blocks: list[Block] = [
        Headline("Peak", f"of {model_name(estimate.recipe)}: {gib(peak.live_bytes)} live at {moment(peak)}")
    ]
    if estimate.unsupported:
        blocks.append(Bullets("Not covered", estimate.unsupported, "unsure"))
    for component in components or tuple(Component):
        lines = [line for line in estimate.lines if line.component is component]
        if lines:
            blocks.append(_table(component, lines, peak.live_bytes, top))
    blocks.append(Paragraph(_LEGEND))
    if classic_hint:
        blocks.append(Paragraph("`memplan explain --classic` sets these figures beside the classic rule of thumb."))
    return Report(tuple(blocks))


def _table(component: Component, lines: list[Line], live_bytes: int, top: int) -> Table:
    shown = lines[:top] if top else lines
    rows = [
        (
            format_bytes(line.bytes),
            share(line.bytes, live_bytes),
            f"{line.count:,}",
            line.module,
            line.op,
            line.formula,
            line.numbers,
        )
        for line in shown
    ]
    rest = lines[len(shown) :]
    if rest:
        size = sum(line.bytes for line in rest)
        count = sum(line.count for line in rest)
        smaller = counted(len(rest), "smaller line")
        rows.append((format_bytes(size), share(size, live_bytes), f"{count:,}", smaller, "", "", ""))
    total = sum(line.bytes for line in lines)
    title = f"{component_name(component)}: {format_bytes(total)}, {share(total, live_bytes)} of what is live"
    return Table(_COLUMNS, tuple(rows), title, stacked=_STACKED)


def receipt_json(estimate: Estimate, *, components: Sequence[Component] = (), top: int = 0) -> dict[str, Any]:
    """The receipt as JSON: the peak, and components with their sums and lines.

    Args:
        estimate: the answer.
        components: only these; all where empty.
        top: lines a component; 0 for all. Sums are always of all lines.
    """
    found = []
    for component in components or tuple(Component):
        lines = [line for line in estimate.lines if line.component is component]
        if lines:
            found.append(
                {
                    "component": component.value,
                    "bytes": sum(line.bytes for line in lines),
                    "lines": [
                        line.model_dump(mode="json", exclude={"component"})
                        | {"share": round(line.bytes / estimate.peak.live_bytes, 6)}
                        for line in (lines[:top] if top else lines)
                    ],
                }
            )
    return {
        "schema_version": estimate.schema_version,
        "peak": estimate.peak.model_dump(mode="json"),
        "components": found,
        "unsupported": list(estimate.unsupported),
    }
