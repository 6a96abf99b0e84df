"""Runs a suite's cells one after another within a time budget, and says what each one gave.

What the analytic engine predicts comes in from outside, so that nothing here depends on it: a prediction sets the limit of
capacity cells and stands beside the reading in the table; it never touches the reading.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from memplan.errors import MemplanError, UnavailableError
from memplan.measure.estimate import measured_spec
from memplan.measure.record import MeasuredRecord, Predicted, make_record
from memplan.measure.result import Device, MeasureOptions, MeasureResult
from memplan.measure.runner import DEFAULT_TIMEOUT_S
from memplan.measure.suite import Cell
from memplan.recipe import Recipe
from memplan.trace.estimate import ResolvedRecipe
from memplan.trace.spec import TraceSpec
from memplan.units import MIB

# Planning figures, not promises: start of a process whose imports were done ahead, CUDA's start, building; speed of random
# numbers and of copies on the card; sustained speed of a step.
START_SECONDS = 5.0
BUILD_BYTES_PER_SECOND = 8e9
STEP_FLOPS = 150e12
LEAST_SECONDS = 20.0
# The allocator takes segments of 2 and 20 MiB: a limit is a multiple of 2 MiB, so that it means what it says.
_CAPACITY_STEP = 2 * MIB

Status = Literal["ok", "out_of_memory", "failed", "unavailable", "unsupported", "no_prediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an engine says of a cell before it runs.

    Attributes:
        upper_reserved_bytes: what the verdict's bound allows the allocator.
        parameters: elements of the model, for the planned time.
        reason: why there are no bytes; empty where there are.
    """

    allocated_bytes: int = 0
    reserved_bytes: int = 0
    device_bytes: int = 0
    upper_reserved_bytes: int = 0
    parameters: int = 0
    reason: str = ""


Resolve = Callable[[Recipe], ResolvedRecipe]
Predict = Callable[[Recipe], Prediction]


class RunsCells(Protocol):
    """What a campaign needs of `memplan.measure.runner.Runner`."""

    def run(self, spec: TraceSpec, options: MeasureOptions, *, timeout_s: float = ...) -> MeasureResult:
        """Measure one cell."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell with everything that is known before it runs.

    Attributes:
        capacity_bytes: limit of the allocator, or None.
        seconds: how long it should take; a planning figure.
    """

    cell: Cell
    recipe: Recipe
    resolved: ResolvedRecipe
    prediction: Prediction
    capacity_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one cell.

    Attributes:
        message: why there is no reading; empty where there is one.
        record: the record; None on the CPU and without a reading.
    """

    planned: Planned
    status: Status
    seconds: float
    repeat: int = 0
    message: str = ""
    result: MeasureResult | None = None
    record: MeasuredRecord | None = None


def plan(cells: Sequence[Cell], resolve: Resolve, predict: Predict, *, gpu: str | None, steps: int) -> list[Planned]:
    """Every cell with its prediction, its limit and its planned time, in the given order.

    Args:
        cells: rows of a suite.
        resolve: fills a recipe's defaults in.
        predict: what an engine says of a recipe.
        gpu: the catalog's name of the card, for defaults and predictions that depend on it.
        steps: optimizer steps of a cell.
    """
    found = []
    for cell in cells:
        recipe = cell.recipe(gpu)
        resolved, prediction = resolve(recipe), predict(recipe)
        capacity = None
        if cell.capacity is not None and not prediction.reason:
            capacity = int(prediction.reserved_bytes * cell.capacity) // _CAPACITY_STEP * _CAPACITY_STEP
        found.append(Planned(cell, recipe, resolved, prediction, capacity, seconds_of(resolved, prediction, steps)))
    return found


def seconds_of(resolved: ResolvedRecipe, prediction: Prediction, steps: int) -> float:
    """A planning figure: start, filling the card, and `steps` steps of 8 FLOPs a parameter and token."""
    values = resolved.values
    shape = (values["micro_batch_size"], values.get("sequence_length", 1), values["gradient_accumulation_steps"])
    tokens = math.prod(int(size) for size in shape)
    work = steps * 8 * prediction.parameters * tokens / STEP_FLOPS
    return START_SECONDS + prediction.reserved_bytes / BUILD_BYTES_PER_SECOND + work


def run(
    planned: Sequence[Planned],
    runner: RunsCells,
    *,
    date: str,
    device: Device = "cuda",
    minutes: float | None = None,
    steps: int = 3,
    repeats: int = 1,
    skip: Collection[tuple[str, int]] = (),
    version: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """Run cells in order until the time is up; one that cannot finish in what is left is passed over for a shorter one.

    Args:
        planned: from `plan`.
        runner: runs one cell in a process of its own.
        date: written into records.
        device: `cpu` for testing; then there are no records.
        minutes: time for all of them; None for as long as it takes.
        steps: optimizer steps of a cell.
        repeats: runs of every cell; all cells have their first before any has its second.
        skip: (cell, repeat) that are recorded already.
        version: of memplan, for the record's prediction.
        clock: seconds, monotonic.

    Raises:
        UnavailableError: there is no GPU at all.
    """
    deadline = None if minutes is None else clock() + 60 * minutes
    for repeat in range(repeats):
        for entry in planned:
            if (entry.cell.name, repeat) in skip:
                continue
            left = DEFAULT_TIMEOUT_S if deadline is None else deadline - clock()
            if left < LEAST_SECONDS:
                return
            if entry.seconds > left:
                continue
            started = clock()
            report = _run_one(
                entry, runner, device, steps, repeat, min(left, DEFAULT_TIMEOUT_S), date=date, version=version
            )
            yield replace(report, seconds=clock() - started, repeat=repeat)


def _run_one(
    entry: Planned,
    runner: RunsCells,
    device: Device,
    steps: int,
    repeat: int,
    timeout_s: float,
    *,
    date: str,
    version: str,
) -> Report:
    if entry.cell.capacity is not None and entry.capacity_bytes is None:
        return Report(entry, "no_prediction", 0, message=entry.prediction.reason)
    options = MeasureOptions(device=device, capacity_bytes=entry.capacity_bytes, repeat=repeat)
    try:
        spec = measured_spec(entry.resolved, steps=steps, device=device)
        result = runner.run(spec, options, timeout_s=timeout_s)
    except UnavailableError as error:
        if error.code == "no_gpu":
            raise
        return Report(entry, "unavailable", 0, message=error.message)
    except MemplanError as error:
        status: Status = "unsupported" if error.code in ("not_measurable", "model_not_buildable") else "failed"
        return Report(entry, status, 0, message=error.message)
    record = None
    if device == "cuda":
        prediction = entry.prediction
        predicted = None
        if not prediction.reason:
            predicted = Predicted(
                allocated_bytes=prediction.allocated_bytes,
                reserved_bytes=prediction.reserved_bytes,
                upper_reserved_bytes=prediction.upper_reserved_bytes or None,
                memplan=version,
            )
        record = make_record(
            result,
            entry.recipe.model_dump(mode="json", exclude_none=True),
            cell=entry.cell.name,
            suite=entry.cell.suite,
            date=date,
            predicted=predicted,
        )
    return Report(entry, result.outcome, 0, result=result, record=record)
