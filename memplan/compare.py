"""Estimate and trace of the same recipe, laid side by side: live bytes at peaks and ends, and the tensors each layer saves.

The trace is the witness; what differs is a finding about the engine (or about the trace), never a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from memplan.errors import MemplanError
from memplan.interop.memory_viz import events_of
from memplan.prepare import Prepared, prepare
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve
from memplan.saved_tensors import LayerComparison, compare_layers
from memplan.step.walk import Walk
from memplan.trace.estimate import spec_of
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.trace.spec import TraceSpec
from memplan.training_step import recordings, run_of, walk
from memplan.unsupported import unsupported_parts

# Recipes traced by one worker: enough to import torch rarely, few enough that a crash costs little.
_CHUNK = 24


@dataclass(frozen=True, slots=True)
class PhaseDifference:
    """One phase in both answers, live bytes rounded to 512.

    Attributes:
        step: 0 for the load.
        estimate_at, trace_at: op and module at the peak.
    """

    step: int
    phase: str
    estimate_peak_bytes: int
    trace_peak_bytes: int
    estimate_end_bytes: int
    trace_end_bytes: int
    estimate_at: str
    trace_at: str

    @property
    def peak_difference_bytes(self) -> int:
        """Estimate minus trace."""
        return self.estimate_peak_bytes - self.trace_peak_bytes

    @property
    def end_difference_bytes(self) -> int:
        """Estimate minus trace."""
        return self.estimate_end_bytes - self.trace_end_bytes

    @property
    def fractions(self) -> tuple[float, float]:
        """Both differences as parts of what the trace says."""
        return (
            self.peak_difference_bytes / max(self.trace_peak_bytes, 1),
            self.end_difference_bytes / max(self.trace_end_bytes, 1),
        )

    @property
    def is_equal(self) -> bool:
        """Whether peak and end agree to the byte."""
        return not self.peak_difference_bytes and not self.end_difference_bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both answers to one recipe.

    Attributes:
        phases: every phase; empty where one of the two has no answer.
        layers: the tensors that each layer saves for backward.
        parameters_equal: whether total and trainable counts agree.
        refusal: why there is no comparison, in words.
    """

    recipe: Recipe
    phases: tuple[PhaseDifference, ...] = ()
    layers: tuple[LayerComparison, ...] = ()
    parameters_equal: bool = False
    refusal: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether live bytes agree at every phase's peak and end, and the numbers of parameters do."""
        return bool(self.phases) and self.parameters_equal and all(phase.is_equal for phase in self.phases)

    @property
    def saves_the_same(self) -> bool:
        """Whether each layer's list of saved tensors agrees entry by entry."""
        return bool(self.layers) and all(layer.is_equal for layer in self.layers)

    @property
    def worst_fraction(self) -> float:
        """Largest difference at a phase's peak or end, as a part of the traced peak or end."""
        return max((max(map(abs, phase.fractions)) for phase in self.phases), default=0.0)


def compare(recipes: Sequence[Recipe], *, walk_unsupported: bool = False, jobs: int = 1) -> list[Comparison]:
    """Compare estimate and trace for each recipe.

    Args:
        recipes: what to compare.
        jobs: worker processes that trace at a time; one process traces many recipes.
        walk_unsupported: walk a step that the engine itself would call unsupported (to find out whether it is right).

    Raises:
        UnavailableError: torch, transformers or peft is missing.
        InputError: a recipe is wrong.
    """
    resolved = [resolve(recipe) for recipe in recipes]
    found: list[Comparison | None] = [None] * len(recipes)
    asked: list[int] = []
    walks: dict[int, Walk] = {}
    ready: dict[int, Prepared] = {}
    specs = []
    for index, entry in enumerate(resolved):
        try:
            prepared = prepare(entry)
            unsupported = unsupported_parts(entry, prepared)
            if unsupported.step and not walk_unsupported:
                found[index] = Comparison(recipes[index], refusal="; ".join(unsupported.texts))
                continue
            specs.append(spec_of(entry))
            walks[index], ready[index] = walk(entry, prepared)[1], prepared
            asked.append(index)
        except MemplanError as error:
            found[index] = Comparison(recipes[index], refusal=error.message)
    for index, result in zip(asked, _traced(specs, jobs), strict=True):
        if isinstance(result, MemplanError):
            found[index] = Comparison(recipes[index], refusal=f"trace: {result.message}")
            continue
        parameters = ready[index].state.parameters
        counts = (result.parameters["total"], result.parameters["trainable"])
        found[index] = Comparison(
            recipes[index],
            differences(walks[index], result),
            compare_layers(_layer_by_layer(resolved[index], ready[index]), result),
            parameters_equal=(parameters.total, parameters.trainable) == counts,
        )
    assert all(entry is not None for entry in found)
    return [entry for entry in found if entry is not None]


def _layer_by_layer(resolved: Resolved, prepared: Prepared) -> TraceResult:
    """The walk with every layer by itself, as a trace has it."""
    return events_of(run_of(recordings(resolved, prepared, fold=False), resolved, prepared))


def _traced(specs: Sequence[TraceSpec], jobs: int) -> list[TraceResult | MemplanError]:
    if jobs == 1:
        return run_many(specs) if specs else []
    chunks = [specs[start : start + _CHUNK] for start in range(0, len(specs), _CHUNK)]
    with ThreadPoolExecutor(jobs) as pool:
        return list(chain.from_iterable(pool.map(_traced_chunk, chunks)))


def _traced_chunk(specs: Sequence[TraceSpec]) -> list[TraceResult | MemplanError]:
    """Several specs in one worker; one by one where it died, so that only the one at fault has no answer."""
    try:
        return run_many(specs)
    except MemplanError as error:
        return [error] if len(specs) == 1 else [*chain.from_iterable(_traced_chunk([spec]) for spec in specs)]


def differences(walk: Walk, result: TraceResult) -> tuple[PhaseDifference, ...]:
    """Every phase of a walk beside the same phase of a trace; micro-batches of a step count as one."""
    return tuple(
        PhaseDifference(
            step=mine.at.step,
            phase=str(mine.at.phase),
            estimate_peak_bytes=mine.peak_bytes,
            trace_peak_bytes=theirs.peak_bytes,
            estimate_end_bytes=mine.end_bytes,
            trace_end_bytes=theirs.end_bytes,
            estimate_at=str(mine.at),
            trace_at=f"{theirs.at.name} in {theirs.at.module}" if theirs.at.module else theirs.at.name,
        )
        for mine, theirs in zip(walk.phases, result.merged_phases, strict=True)
    )
