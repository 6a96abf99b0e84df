"""Works out the margins of verdicts from the records, and writes them where an estimate reads them.

Split conformal prediction at the reserved level; `memplan.catalog.calibration` says what counts and why so strictly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from memplan.catalog.calibration import TABLE, Row, RunKind, run_of
from memplan.catalog.gpus import get_gpu
from memplan.evidence.predictions import predict, recipe_key
from memplan.evidence.records import Level, Record, RecordFile, record_files
from memplan.resolve import resolve

ALPHA = 0.02
# The smallest n for which ceil((n + 1) (1 - alpha)) <= n.
LEAST_CONFIGURATIONS = math.ceil(1 / ALPHA) - 1
LEAST_MODELS = 4
# A family with fewer configurations than this is not among those that a bound speaks of.
LEAST_OF_FAMILY = 5

_HEADER = """\
# Made by `python -m memplan.evidence calibration` from the committed records; a test fails when it is not what they give.
# What the columns mean, and what counts: memplan/catalog/calibration.py.
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured configuration.

    Attributes:
        key: the recipe; runs of one configuration count once, with their worst.
        excess: (measured - predicted) / predicted reserved bytes; negative where the estimate was above.
        counts: whether it can bound other runs.
    """

    where: str
    kind: RunKind
    key: str
    model: str
    family: str
    predicted_bytes: int
    excess: float
    counts: bool
    date: str


def conformal_bound(excesses: Iterable[float], alpha: float = ALPHA) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest excess, not below zero; None where n is too small for `alpha`."""
    ordered = sorted(excesses)
    rank = math.ceil((len(ordered) + 1) * (1 - alpha) - 1e-9)
    return max(0.0, ordered[rank - 1]) if ordered and rank <= len(ordered) else None


def points(files: Iterable[RecordFile] | None = None) -> list[Point]:
    """Every configuration with a reserved reading and a prediction, on a card of the catalog."""
    found: dict[tuple[str, str], Point] = {}
    for file in record_files() if files is None else files:
        told = {name for name, entry in file.settled.items() if entry.how != "stated"}
        for record in file.records:
            point = _point(record, counts=not told & set(record.settled))
            if point is None:
                continue
            known = found.get((point.where, point.key))
            if known is None or point.excess > known.excess:
                found[point.where, point.key] = point
    return list(found.values())


def _point(record: Record, *, counts: bool) -> Point | None:
    measured = record.measured.at(Level.RESERVED)
    # Under a limit the allocator gives back what it would otherwise keep.
    if not record.usable or measured is None or record.capacity_bytes is not None or "gpu" not in record.recipe:
        return None
    capability = get_gpu(record.recipe["gpu"]).compute_capability
    predicted = predict(record, "estimate").bytes.get(Level.RESERVED)
    if capability is None or predicted is None:
        return None
    resolved = resolve(record.as_recipe())
    run = run_of(resolved.values, str(resolved.config["model_type"]))
    return Point(
        where=f"sm{capability[0]}{capability[1]}",
        kind=run.kind,
        key=recipe_key(record),
        model=record.model,
        family=run.family,
        predicted_bytes=predicted,
        excess=(measured - predicted) / predicted,
        counts=counts,
        date=record.date[:10],
    )


def rows_of(found: Iterable[Point]) -> list[Row]:
    """One row for each place and kind."""
    groups: dict[tuple[str, RunKind], list[Point]] = {}
    for point in found:
        groups.setdefault((point.where, point.kind), []).append(point)
    return [_row(where, kind, groups[where, kind]) for where, kind in sorted(groups)]


def _row(where: str, kind: RunKind, members: list[Point]) -> Row:
    counted = [point for point in members if point.counts]
    models = {point.model for point in counted}
    families = Counter(point.family for point in counted)
    bound = None
    if len(counted) >= LEAST_CONFIGURATIONS and len(models) >= LEAST_MODELS:
        bound = conformal_bound(point.excess for point in counted)
    return Row(
        where=where,
        kind=kind,
        configurations=len(members),
        counted=len(counted),
        models=len(models),
        families=tuple(sorted(family for family, count in families.items() if count >= LEAST_OF_FAMILY)),
        low_bytes=min((point.predicted_bytes for point in counted), default=0),
        high_bytes=max((point.predicted_bytes for point in counted), default=0),
        worst_ppm=math.ceil(max(0.0, *(point.excess for point in members), 0.0) * 10**6),
        bound_ppm=None if bound is None else math.ceil(bound * 10**6),
        date=max(point.date for point in members),
    )


def calibration_table() -> str:
    """What `calibration.toml` must hold."""
    parts = [
        _HEADER,
        f"alpha = {ALPHA}",
        f"least_configurations = {LEAST_CONFIGURATIONS}",
        f"least_models = {LEAST_MODELS}",
    ]
    for row in rows_of(points()):
        parts += ["", "[[row]]"]
        for key in Row.__dataclass_fields__:
            value = getattr(row, key)
            if value is not None:
                parts.append(f"{key} = {_toml(value)}")
    return "\n".join(parts) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{entry}"' for entry in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def write_calibration() -> None:
    """Regenerate `calibration.toml`."""
    TABLE.write_text(calibration_table(), encoding="utf-8")


__all__ = [
    "ALPHA",
    "LEAST_CONFIGURATIONS",
    "LEAST_MODELS",
    "LEAST_OF_FAMILY",
    "Point",
    "calibration_table",
    "conformal_bound",
    "points",
    "rows_of",
    "write_calibration",
]
