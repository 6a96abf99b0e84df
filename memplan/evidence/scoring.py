"""Scores predictions against records: signed errors, their summary by group, and the verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import get_gpu
from memplan.estimate import Fits
from memplan.evidence.predictions import EngineName, Prediction, predict
from memplan.evidence.records import Level, Record, RecordFile, select_files
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.verdict import word_for

By = Literal["source", "method", "family", "gpu", "precision"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One record at one level under one engine. `error` is signed: (predicted - measured) / measured."""

    source: str
    record: Record
    engine: EngineName
    level: Level
    predicted_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """Signed relative error; negative where memory was under-predicted."""
        return (self.predicted_bytes - self.measured_bytes) / self.measured_bytes


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a record's own GPU beside what happened.

    Attributes:
        fits: the verdict.
        ran: whether the run finished.
        upper_held: whether the highest measured level stayed below the verdict's upper bound; None where the run died.
        limited: whether the run had a limit on torch's allocator instead of the whole card.
        engine: whose verdict it is.
    """

    source: str
    record: Record
    fits: Fits
    ran: bool
    upper_held: bool | None
    limited: bool = False
    engine: EngineName = "estimate"

    @property
    def wrong_no(self) -> bool:
        """`does_not_fit` was said, and the run finished."""
        return self.fits is Fits.DOES_NOT_FIT and self.ran

    @property
    def wrong_fits(self) -> bool:
        """`fits` was said, and the run died or took more than the bound that `fits` stands on."""
        return self.fits is Fits.FITS and (not self.ran or self.upper_held is False)


@dataclass(frozen=True, slots=True)
class NotScored:
    """A record without a score under one engine, and why."""

    source: str
    record: Record
    engine: EngineName
    reason: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything that one scoring gives."""

    scored: tuple[Scored, ...]
    judged: tuple[Judged, ...]
    not_scored: tuple[NotScored, ...]

    @property
    def wrong_fits(self) -> int:
        """How many verdicts said `fits` and should not have."""
        return sum(entry.wrong_fits for entry in self.judged)


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of a group, as fractions.

    Attributes:
        records: how many were scored.
        median, p95: of the absolute error; p95 is the smallest error that 95 % do not exceed (nearest rank).
        worst: the signed error of largest absolute value.
        under: share of records that were under-predicted.
    """

    source: str
    level: Level
    engine: EngineName
    group: str
    records: int
    median: float
    p95: float
    worst: float
    under: float


def score(
    source: str | None = None, *, engine: Literal["estimate", "trace", "both"] = "estimate", committed: bool = False
) -> Scores:
    """Predict every usable record of `source` (or of all) and compare.

    Args:
        source: of records; None for all.
        engine: which answers.
        committed: whether the committed estimates are scored, which takes milliseconds, instead of new ones.

    Raises:
        UnknownNameError: no such source.
    """
    engines: tuple[EngineName, ...] = ("estimate", "trace") if engine == "both" else (engine,)
    collected = _Collected(committed)
    for file in select_files(source):
        for record in file.records:
            for name in engines:
                collected.add(file, record, name)
    return Scores(tuple(collected.scored), tuple(collected.judged), tuple(collected.not_scored))


@dataclass
class _Collected:
    committed: bool
    scored: list[Scored] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    not_scored: list[NotScored] = field(default_factory=list)

    def add(self, file: RecordFile, record: Record, engine: EngineName) -> None:
        if not record.usable:
            self.not_scored.append(NotScored(file.name, record, engine, record.unusable))
            return
        prediction = predict(record, engine, committed=self.committed)
        if prediction.not_covered:
            self.not_scored.append(NotScored(file.name, record, engine, prediction.not_covered))
            return
        for level in Level:
            measured = record.measured.at(level)
            # Under a limit the allocator gives back what it would otherwise keep: only what is in tensors is comparable.
            if measured is not None and (record.capacity_bytes is None or level is Level.ALLOCATED):
                self.scored.append(Scored(file.name, record, engine, level, prediction.bytes[level], measured))
        if prediction.fits is not None:
            self.judged.append(replace(_judge(file.name, record, prediction, prediction.fits), engine=engine))


def _judge(source: str, record: Record, prediction: Prediction, fits: Fits) -> Judged:
    """Where the device's use was not read, the least it can have been: the highest reading and the smallest context."""
    ran = record.outcome == "ok"
    assert prediction.upper_bytes is not None
    if record.capacity_bytes is not None:
        return _judge_limited(source, record, prediction, record.capacity_bytes, ran)
    if not ran:
        return Judged(source, record, fits, ran, None)
    context = cuda_context(get_gpu(record.recipe["gpu"])).low_bytes
    inside = max(record.measured.reserved_bytes or 0, record.measured.allocated_bytes or 0)
    used = record.measured.device_bytes or inside + context
    return Judged(source, record, fits, ran, used <= prediction.upper_bytes)


def _judge_limited(source: str, record: Record, prediction: Prediction, capacity: int, ran: bool) -> Judged:
    """The verdict with the limit in the card's place: the context counts on neither side."""
    expected, upper = prediction.bytes[Level.RESERVED], prediction.upper_reserved_bytes
    assert upper is not None
    held = (record.measured.reserved_bytes or 0) <= upper if ran else None
    return Judged(source, record, word_for(expected, upper, capacity, unsupported=False), ran, held, limited=True)


def summaries(scored: Iterable[Scored], by: By | None = None) -> list[Summary]:
    """One summary for each source, level, engine and group, in the order of the records."""
    groups: dict[tuple[str, Level, EngineName, str], list[float]] = {}
    for entry in scored:
        group = "" if by is None else group_of(entry.record, by, entry.source)
        groups.setdefault((entry.source, entry.level, entry.engine, group), []).append(entry.error)
    found = [_summary(*key, errors) for key, errors in groups.items()]
    return sorted(found, key=lambda row: (row.source, [*Level].index(row.level), row.engine, row.group.casefold()))


def _summary(source: str, level: Level, engine: EngineName, group: str, errors: Sequence[float]) -> Summary:
    sizes = sorted(abs(error) for error in errors)
    middle = len(sizes) // 2
    return Summary(
        source=source,
        level=level,
        engine=engine,
        group=group,
        records=len(sizes),
        median=sizes[middle] if len(sizes) % 2 else (sizes[middle - 1] + sizes[middle]) / 2,
        p95=sizes[math.ceil(0.95 * len(sizes)) - 1],
        worst=max(errors, key=abs),
        under=sum(error < 0 for error in errors) / len(errors),
    )


def group_of(record: Record, by: By, source: str) -> str:
    """The group that `record` belongs to under `by`."""
    pick: dict[By, Callable[[], str]] = {
        "source": lambda: source,
        "method": lambda: record.method,
        "family": lambda: _facts(record)[0],
        "precision": lambda: _facts(record)[1],
        "gpu": lambda: get_gpu(record.recipe["gpu"]).name if "gpu" in record.recipe else record.hardware.name,
    }
    return pick[by]()


def _facts(record: Record) -> tuple[str, str]:
    return _family_and_precision(record.as_recipe().model_dump_json())


@lru_cache(maxsize=4096)
def _family_and_precision(recipe_json: str) -> tuple[str, str]:
    resolved = resolve(Recipe.model_validate_json(recipe_json))
    precision = str(resolved.precision)
    if resolved.quantization is not None:
        precision = f"{precision}, {resolved.quantization.scheme}"
    return str(resolved.config["model_type"]), f"{precision}, {resolved.dtype}"


def at_level(scores: Scores, level: Level) -> Scores:
    """`scores` with readings of one level alone; verdicts are of the device level and stay."""
    return replace(scores, scored=tuple(entry for entry in scores.scored if entry.level is level))


def verdict_matrix(judged: Iterable[Judged]) -> Counter[tuple[bool, Fits]]:
    """How often each verdict was given to runs that finished (True) and that died (False)."""
    return Counter((entry.ran, entry.fits) for entry in judged)


__all__ = [
    "By",
    "Judged",
    "NotScored",
    "Scored",
    "Scores",
    "Summary",
    "at_level",
    "group_of",
    "score",
    "summaries",
    "verdict_matrix",
]
