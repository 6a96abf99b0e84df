"""A predicted-versus-measured plot as inline SVG: logarithmic axes, the diagonal, one dot a record."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from memplan.evidence.scoring import Scored
from memplan.units import GIB

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 560, 64, 52, 16, 16
# Okabe and Ito's palette, told apart under colour blindness; dots of one source share a colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TICKS_GIB = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def scatter(scored: Sequence[Scored]) -> str:
    """The plot, or an empty string without records. Engines differ in shape: estimate a disc, trace a ring."""
    if not scored:
        return ""
    sizes = [size / GIB for entry in scored for size in (entry.predicted_bytes, entry.measured_bytes)]
    axis = _Axis(math.log2(min(sizes)) - 0.2, math.log2(max(sizes)) + 0.2)
    sources = sorted({entry.source for entry in scored})
    colour = {source: COLOURS[index % len(COLOURS)] for index, source in enumerate(sources)}
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="plot-title">',
        '<title id="plot-title">Predicted against measured peak memory, both in GiB on logarithmic axes</title>',
        *_grid(axis),
        *(_dot(axis, entry, colour[entry.source]) for entry in scored),
        *_legend(sources, colour),
        "</svg>",
    ]
    return "\n".join(parts)


class _Axis:
    """Maps GiB to pixels: both axes have one range, so that the diagonal means agreement."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.span = low, high - low

    def x(self, gib: float) -> float:
        return LEFT + (math.log2(gib) - self.low) / self.span * (WIDTH - LEFT - RIGHT)

    def y(self, gib: float) -> float:
        return HEIGHT - BOTTOM - (math.log2(gib) - self.low) / self.span * (HEIGHT - BOTTOM - TOP)

    def holds(self, gib: float) -> bool:
        return self.low <= math.log2(gib) <= self.low + self.span


def _grid(axis: _Axis) -> list[str]:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    parts = [f'<path class="diagonal" d="M{left} {bottom}L{right} {top}"/>']
    for tick in TICKS_GIB:
        if axis.holds(tick):
            x, y = axis.x(tick), axis.y(tick)
            parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}M{left} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (left + right) // 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">measured, GiB</text>')
    turn = f'transform="rotate(-90 16 {(top + bottom) // 2})"'
    parts.append(f'<text x="16" y="{(top + bottom) // 2}" text-anchor="middle" {turn}>predicted, GiB</text>')
    return parts


def _dot(axis: _Axis, entry: Scored, colour: str) -> str:
    x, y = axis.x(entry.measured_bytes / GIB), axis.y(entry.predicted_bytes / GIB)
    label = html.escape(f"{entry.record.id}: {entry.level}, {entry.engine}, {100 * entry.error:+.2f} %")
    paint = f'fill="{colour}" fill-opacity="0.7"' if entry.engine == "estimate" else f'fill="none" stroke="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {paint}><title>{label}</title></circle>'


def _legend(sources: Sequence[str], colour: dict[str, str]) -> list[str]:
    parts = []
    for index, source in enumerate(sources):
        y = TOP + 18 + 18 * index
        parts.append(f'<circle cx="{LEFT + 14}" cy="{y - 4}" r="4" fill="{colour[source]}"/>')
        parts.append(f'<text x="{LEFT + 24}" y="{y}">{html.escape(source)}</text>')
    return parts
