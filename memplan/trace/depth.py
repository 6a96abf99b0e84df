"""A deep model from shallow traces (`--layers auto`): exact wherever memory is linear in the number of equal layers.

The same step is traced at three depths. Every place of the program (an op in a module, with a layer's number replaced
by first, inner or last) has the highest live bytes ever seen there; each of these is a line through the three depths,
and a phase's peak at full depth is the highest of the lines. A place whose three values are not on a line makes the
result inexact, and so does a place that only some depths have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from memplan.errors import MemplanError, UnsupportedError
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.trace.spec import TraceSpec

# Enough that two inner layers exist between first and last.
DEPTHS = (4, 5, 6)
_LAYER = re.compile(r"(?:(?<=\.)|^)(?:layers|layer|h|block|blocks)\.(\d+)(?=\.|$)")

_Place = tuple[int, str, str, str]


@dataclass(frozen=True)
class DeepPhase:
    """One phase at full depth, in live bytes rounded to 512 a storage."""

    step: int
    phase: str
    peak_bytes: int
    end_bytes: int
    op: str
    module: str


@dataclass(frozen=True)
class Extrapolation:
    """What shallow traces say about a deep model.

    Attributes:
        num_layers: the depth extrapolated to.
        exact: whether every line that could hold a peak went through all traced depths.
        phases: peaks and ends.
        doubts: places that are not on a line, with the bytes by which they miss it.
    """

    num_layers: int
    exact: bool
    phases: tuple[DeepPhase, ...]
    doubts: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """The highest live bytes of the run."""
        return max(entry.peak_bytes for entry in self.phases)


def extrapolate(spec: TraceSpec, num_layers: int, *, timeout_s: float | None = None) -> Extrapolation:
    """Traces `spec` at `DEPTHS` and extrapolates to `num_layers`.

    Raises:
        TraceFailedError, UnsupportedError: a trace failed, or the model's layers are not alike.
    """
    config = spec.model_config
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(set(kinds)) > 1:
        raise UnsupportedError(
            "layers of several kinds cannot be extrapolated from a few of them",
            hint="trace the model at full depth",
            code="layers_differ",
        )
    answers = run_many([dataclasses.replace(spec, num_layers=depth) for depth in DEPTHS], timeout_s=timeout_s)
    results = []
    for answer in answers:
        if isinstance(answer, MemplanError):
            raise answer
        results.append(answer)
    return combine(results, DEPTHS, num_layers)


def combine(results: list[TraceResult], depths: tuple[int, int, int], num_layers: int) -> Extrapolation:
    """The lines through three traces at `depths`, at `num_layers`."""
    tables = [_peaks_by_place(result, depth) for result, depth in zip(results, depths, strict=True)]
    doubts: dict[str, int] = {}
    best: dict[tuple[int, str], tuple[int, str, str]] = {}
    for place in tables[-1]:
        values = [table.get(place) for table in tables]
        step, phase, op, module = place
        if None in values:
            doubts[f"{phase} {step}: {op} in {module}"] = tables[-1][place]
            continue
        first, second, third = (value for value in values if value is not None)
        bend = (third - second) - (second - first)
        if bend:
            doubts[f"{phase} {step}: {op} in {module}"] = abs(bend)
        full = third + (third - second) * (num_layers - depths[2])
        if full > best.get((step, phase), (-1, "", ""))[0]:
            best[(step, phase)] = (full, op, module)
    phases: list[DeepPhase] = []
    for summary in results[-1].phases:
        key = (summary.step, summary.phase)
        if key not in best or any((entry.step, entry.phase) == key for entry in phases):
            continue
        ends = [_last(result, key) for result in results]
        end_bytes = ends[2] + (ends[2] - ends[1]) * (num_layers - depths[2])
        peak, op, module = best[key]
        phases.append(DeepPhase(summary.step, summary.phase, max(peak, end_bytes), end_bytes, op, module))
    relevant = {place: miss for place, miss in doubts.items() if miss}
    return Extrapolation(num_layers, not relevant, tuple(phases), relevant)


def _last(result: TraceResult, key: tuple[int, str]) -> int:
    return [entry for entry in result.phases if (entry.step, entry.phase) == key][-1].end_bytes


def _peaks_by_place(result: TraceResult, depth: int) -> dict[_Place, int]:
    peaks: dict[_Place, int] = {}
    for event in result.walk():
        if not event.alloc:
            continue
        path = event.storage.name if event.phase == "load" and event.storage.name else event.storage.module
        place = (event.step, event.phase, event.storage.op, _position(path, depth))
        if event.live_bytes > peaks.get(place, -1):
            peaks[place] = event.live_bytes
    return peaks


def _position(path: str, depth: int) -> str:
    """`path` with a layer's number replaced by where in the stack it stands."""

    def word(match: re.Match[str]) -> str:
        number = int(match.group(1))
        where = "first" if number == 0 else "last" if number == depth - 1 else "inner"
        return match.group(0)[: match.start(1) - match.start(0)] + where

    return _LAYER.sub(word, path)
