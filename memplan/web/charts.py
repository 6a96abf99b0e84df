"""Geometry of the charts: what the templates draw as SVG, in percent of the drawing's width or height.

Nothing is scaled by a viewBox, so that text keeps its size on every screen. Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Estimate, Phase, TimelinePoint, VerdictReport
from memplan.report.wording import component_name, phase_name

# Narrower parts are drawn with their neighbours: a line of their own colour could not be seen.
_NARROWEST_PERCENT = 0.25
_HEADROOM = 1.06


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the bar.

    Attributes:
        name: component, which is also its class.
        x, width: percent.
    """

    name: str
    label: str
    size_bytes: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The run against a card.

    Attributes:
        parts: from the left.
        expected, upper, usable: places in percent; usable is None where no GPU is named, and so is upper.
    """

    parts: tuple[Part, ...]
    expected: float
    upper: float | None
    usable: float | None


def bar_of(estimate: Estimate) -> Bar:
    """The device's bytes at the peak by component."""
    peak, verdict = estimate.peak, estimate.verdict_report
    sizes = [(entry.component, entry.bytes) for entry in estimate.components]
    sizes.append((Component.ALLOCATOR_CACHE, peak.reserved_bytes - peak.live_bytes))
    sizes.append((Component.CUDA_CONTEXT, peak.device_bytes - peak.reserved_bytes))
    whole = _whole(peak.device_bytes, verdict)
    parts, position = [], 0
    for component, size in sizes:
        if 100 * size / whole >= _NARROWEST_PERCENT:
            parts.append(
                Part(component.value, component_name(component), size, 100 * position / whole, 100 * size / whole)
            )
        position += size
    return Bar(
        tuple(parts),
        100 * peak.device_bytes / whole,
        100 * verdict.upper_bytes / whole if verdict else None,
        100 * verdict.usable_bytes / whole if verdict else None,
    )


def _whole(device_bytes: int, verdict: VerdictReport | None) -> int:
    """Bytes of the full width: the card, or what goes beyond it."""
    if verdict is None:
        return device_bytes
    highest = max(device_bytes, verdict.upper_bytes, verdict.usable_bytes)
    # Where the card is not the widest, its end must not be the edge of the drawing.
    return highest if highest == verdict.usable_bytes else int(highest * 1.02)


@dataclass(frozen=True, slots=True)
class Column:
    """One phase of the timeline; places in percent, y from the top.

    Attributes:
        top: where the phase's highest moment lies.
        end: where it ends.
        is_peak: whether it holds the highest moment of the run.
    """

    label: str
    step: int
    phase: Phase
    peak_bytes: int
    end_bytes: int
    x: float
    width: float
    top: float
    height: float
    end: float
    is_peak: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """Phases side by side.

    Attributes:
        limit: where the card's memory for torch ends; None where it lies above the drawing or no GPU is named.
        ticks: (percent from the top, bytes).
    """

    columns: tuple[Column, ...]
    limit: float | None
    ticks: tuple[tuple[float, int], ...]


def timeline_of(estimate: Estimate) -> Timeline | None:
    """The phases of two steps, live bytes; None where the step was not walked."""
    points = estimate.timeline
    if not points:
        return None
    highest = max(point.peak_bytes for point in points)
    verdict = estimate.verdict_report
    limit_bytes = verdict.usable_bytes - (estimate.peak.device_bytes - estimate.peak.live_bytes) if verdict else 0
    shows_limit = 0 < limit_bytes <= 2 * highest
    scale = int(max(highest, limit_bytes if shows_limit else 0) * _HEADROOM) or 1
    width = 100 / len(points)
    columns = tuple(_column(point, index * width, width, scale, highest) for index, point in enumerate(points))
    return Timeline(columns, _y(limit_bytes, scale) if shows_limit else None, _ticks(scale))


def _column(point: TimelinePoint, x: float, width: float, scale: int, highest: int) -> Column:
    return Column(
        label=phase_name(point.phase),
        step=point.step,
        phase=point.phase,
        peak_bytes=point.peak_bytes,
        end_bytes=point.end_bytes,
        x=x,
        width=width,
        top=_y(point.peak_bytes, scale),
        height=100 - _y(point.peak_bytes, scale),
        end=_y(point.end_bytes, scale),
        is_peak=point.peak_bytes == highest,
    )


def _y(size_bytes: int, scale: int) -> float:
    return 100 - 100 * size_bytes / scale


def _ticks(scale: int) -> tuple[tuple[float, int], ...]:
    """Three or four round sizes."""
    for step in _round_steps():
        if scale // step <= 4:
            return tuple((_y(step * index, scale), step * index) for index in range(1, scale // step + 1))
    return ()


def _round_steps() -> Sequence[int]:
    return [factor * 2**power for power in range(20, 60, 10) for factor in (1, 2, 5, 10, 20, 50, 100, 200, 500)]
