"""The report of the classic accounting. GB (10^9 bytes) stands only in the columns of the classic rule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memplan.classic import ClassicAccounting, ClassicRow, Item
from memplan.report.tree import Block, Bullets, Column, Facts, Headline, Paragraph, Report, Table
from memplan.report.wording import gib
from memplan.units import GB, GIB, MIB, format_count

# What is less in every column is summed in one line.
_SMALL_BYTES = MIB
_NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}


def classic_report(accounting: ClassicAccounting) -> Report:
    """The rule, the exact figures beside it, and what makes the difference."""
    parameters, per = accounting.parameters, accounting.per_parameter
    rule = (
        f"{per.weights} weights + {per.gradients} gradients + ({per.master} float32 copy + {per.states} Adam states) "
        f"= {per.trained}"
    )
    facts = Facts(
        (
            ("N", f"{_round(accounting.nominal_parameters)} parameters, {accounting.nominal_source}"),
            ("exactly", f"{accounting.rows[0].run.parameters.total:,} parameters"),
            ("bytes, trained", rule),
            ("bytes, frozen", f"{per.frozen} in 16 bits, {per.packed:g} in 4 bits"),
        )
    )
    line = (
        f"trainable: {parameters.trainable:,} || all params: {parameters.total:,} || "
        f"trainable%: {parameters.trainable_percent:.4f}"
    )
    blocks: list[Block] = [
        Headline("Classic accounting", f"of {accounting.model}, and the exact one"),
        facts,
        Paragraph(line),
        _rule_table(accounting),
        _difference(accounting.rows),
    ]
    unwalked = [f"{_NAMES[row.method]}: {text}" for row in accounting.rows for text in row.run.unsupported]
    if unwalked:
        blocks.append(Bullets("Not walked", tuple(unwalked), "unsure"))
    return Report(tuple(blocks))


def _round(count: int) -> str:
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if count >= unit and count % (unit // 100) == 0:
            return f"{count / unit:g} {word}"
    return format_count(count)


def _rule_table(accounting: ClassicAccounting) -> Table:
    per = accounting.per_parameter
    is_walked = any(row.run_items for row in accounting.rows)
    rows: list[tuple[str, ...]] = []
    for row in accounting.rows:
        base = f"N × {per.packed if row.method == 'qlora' else per.frozen:g}"
        trained = f"N × {per.trained}"
        formula = trained if row.method == "full" else f"{base} + {trained} × {100 * row.trained_share:.4f} %"
        base_text = f"{row.base_bytes / GB:.1f} + {row.trained_bytes / GB:.2f} = " if row.base_bytes else ""
        rows.append(
            (
                _NAMES[row.method],
                formula,
                f"{base_text}{row.classic_bytes / GB:.1f} GB",
                gib(row.states_bytes),
                *((gib(row.run.peak.device_bytes) if row.run_items else "not walked",) if is_walked else ()),
            )
        )
    columns = (
        Column("method"),
        Column("rule", fit="wrap"),
        Column("classic", "right"),
        Column("exact", "right"),
        *((Column("whole run", "right"),) if is_walked else ()),
    )
    return Table(columns, tuple(rows), "Model states")


def _difference(rows: tuple[ClassicRow, ...]) -> Table:
    """Items by row, methods by column, in GiB; each column adds up."""
    body: list[tuple[str, ...]] = []
    strong = set()

    def level(name: str, values: list[int | None]) -> None:
        strong.add(len(body))
        body.append((name, *("" if value is None else f"{value / GIB:,.3f}" for value in values)))

    def items(columns: list[tuple[Item, ...]]) -> None:
        sizes = [{item.reason: item.size_bytes for item in column} for column in columns]
        # QLoRA, the last, has every reason in its order.
        reasons = list(dict.fromkeys(item.reason for column in reversed(columns) for item in column))
        small = [reason for reason in reasons if all(abs(size.get(reason, 0)) < _SMALL_BYTES for size in sizes)]
        for reason in reasons:
            if reason not in small:
                body.append((reason, *(_signed(size.get(reason)) for size in sizes)))
        if small:
            rest = [sum(size.get(reason, 0) for reason in small) for size in sizes]
            body.append((", ".join(small), *(_signed(value) for value in rest)))

    level("classic figure, in GiB", [row.classic_bytes for row in rows])
    items([row.items for row in rows])
    level("exact model states", [row.states_bytes for row in rows])
    if any(row.run_items for row in rows):
        items([row.run_items for row in rows])
        level("device at the peak", [row.run.peak.device_bytes if row.run_items else None for row in rows])
    columns = (Column("GiB", fit="wrap"), *(Column(_NAMES[row.method], "right") for row in rows))
    return Table(columns, tuple(body), "What makes the difference", frozenset(strong))


def _signed(value: int | None) -> str:
    if value is None:
        return ""
    text = f"{value / GIB:+,.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def classic_json(accounting: ClassicAccounting) -> dict[str, Any]:
    """The comparison as JSON, all sizes in bytes."""
    return {
        "model": accounting.model,
        "nominal_parameters": accounting.nominal_parameters,
        "nominal_source": accounting.nominal_source,
        "bytes_per_parameter": asdict(accounting.per_parameter) | {"trained": accounting.per_parameter.trained},
        "parameters": {
            "total": accounting.parameters.total,
            "trainable": accounting.parameters.trainable,
            "trainable_percent": round(accounting.parameters.trainable_percent, 4),
        },
        "methods": [_row_json(row) for row in accounting.rows],
    }


def _row_json(row: ClassicRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "classic_bytes": row.classic_bytes,
        "classic_base_bytes": row.base_bytes,
        "classic_trained_bytes": row.trained_bytes,
        "difference": [{"reason": item.reason, "bytes": item.size_bytes} for item in row.items],
        "states_bytes": row.states_bytes,
        "run": [{"reason": item.reason, "bytes": item.size_bytes} for item in row.run_items],
        "device_bytes": row.run.peak.device_bytes if row.run_items else None,
    }
