"""What `memplan measure` does, without a parser: one recipe, a suite, or a bundle to unpack."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from memplan.errors import InputError, UnavailableError
from memplan.estimate import Estimate
from memplan.measure.campaign import Planned, Report, run
from memplan.measure.estimate import DEFAULT_STEPS, measured_spec, to_estimate
from memplan.measure.record import append_to_bundle, read_bundle, read_directory, recorded_cells, write_record
from memplan.measure.result import Device, MeasureOptions, MeasureResult
from memplan.measure.runner import DEFAULT_TIMEOUT_S, Runner
from memplan.measure.table import report_line, summary_table
from memplan.trace.estimate import ResolvedRecipe


@dataclasses.dataclass(frozen=True, slots=True)
class SuiteOptions:
    """How a suite is run.

    Attributes:
        directory: where records go, one file a run; None for none.
        bundle: where records go as lines of one file; None for none.
        recorded: directories and bundles whose cells are passed over.
        minutes: time for everything; None for as long as it takes.
    """

    directory: Path | None = None
    bundle: Path | None = None
    recorded: tuple[Path, ...] = ()
    minutes: float | None = None
    steps: int = DEFAULT_STEPS
    repeats: int = 1
    device: Device = "cuda"


def measure(
    resolved: ResolvedRecipe,
    *,
    device: Device = "cuda",
    steps: int = DEFAULT_STEPS,
    capacity_bytes: int | None = None,
    timeout_s: float | None = None,
    history: Path | None = None,
) -> tuple[Estimate, MeasureResult]:
    """Measure one recipe; the answer, and everything that was read.

    Args:
        resolved: the recipe with its defaults filled in.
        device: `cpu` for testing.
        steps: optimizer steps.
        capacity_bytes: limit of torch's allocator.
        timeout_s: how long it may take.
        history: where every allocator event goes, as JSON.

    Raises:
        UnsupportedError: one process on one GPU cannot run the recipe, or it could not be finished.
        UnavailableError: no GPU, or a package is missing.
    """
    spec = measured_spec(resolved, steps=steps, device=device)
    options = MeasureOptions(device=device, capacity_bytes=capacity_bytes, history=history is not None)
    with Runner() as runner:
        result = runner.run(spec, options, timeout_s=timeout_s or DEFAULT_TIMEOUT_S)
    if history is not None:
        history.write_text(result.to_json() + "\n", encoding="utf-8")
    return to_estimate(result, resolved), result


def measured_gpu_name() -> str | None:
    """The name of the first GPU as torch reports it, asked in a process of its own; None without one.

    Raises:
        UnavailableError: torch is missing.
    """
    import subprocess
    import sys
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UnavailableError("memplan measure needs torch", hint='pip install "memplan[trace]"', code="no_torch")
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip() or None


def already_recorded(places: Sequence[Path]) -> set[tuple[str, int]]:
    """(cell, repeat) of every record in the given directories and bundles; a place that is not there holds none."""
    found: set[tuple[str, int]] = set()
    for place in places:
        if place.is_dir():
            found |= recorded_cells(read_directory(place))
        elif place.exists():
            found |= recorded_cells(read_bundle(place))
    return found


def run_suite(
    planned: Sequence[Planned],
    options: SuiteOptions,
    stream: TextIO,
    *,
    version: str = "",
    today: Callable[[], dt.date] = dt.date.today,
) -> list[Report]:
    """Run a planned suite; progress and the summary go to `stream`, records where `options` says.

    Raises:
        UnavailableError: there is no GPU.
        InputError: records are asked for of a run on the CPU.
    """
    if options.device == "cpu" and (options.directory or options.bundle):
        raise InputError("a run on the CPU is for testing: it gives no records", hint="leave --out and --bundle out")
    reports: list[Report] = []
    with Runner(ahead=True) as runner:
        for report in run(
            planned,
            runner,
            date=today().isoformat(),
            device=options.device,
            minutes=options.minutes,
            steps=options.steps,
            repeats=options.repeats,
            skip=already_recorded(options.recorded),
            version=version,
        ):
            reports.append(report)
            stream.write(report_line(report) + "\n")
            stream.flush()
            if report.record is not None and options.bundle is not None:
                append_to_bundle(report.record, options.bundle)
            if report.record is not None and options.directory is not None:
                write_record(report.record, options.directory)
    stream.write("\n" + summary_table(reports))
    stream.flush()
    return reports


def reports_json(reports: Sequence[Report]) -> str:
    """What `--json` prints of a suite: one object a cell."""
    rows = []
    for report in reports:
        result = report.result
        rows.append(
            {
                "cell": report.planned.cell.name,
                "repeat": report.repeat,
                "status": report.status,
                "message": report.message,
                "seconds": round(report.seconds, 2),
                "device": result.options.device if result else None,
                "max_allocated_bytes": result.max_allocated_bytes if result else None,
                "max_reserved_bytes": result.max_reserved_bytes if result else None,
                "max_device_bytes": result.max_device_bytes if result else None,
                "predicted_allocated_bytes": report.planned.prediction.allocated_bytes or None,
                "predicted_reserved_bytes": report.planned.prediction.reserved_bytes or None,
            }
        )
    return json.dumps({"schema_version": 1, "cells": rows}, indent=2)


def plan_json(planned: Sequence[Planned]) -> str:
    """What `--list --json` prints: every cell with its recipe, prediction and planned time."""
    rows = [
        {
            "cell": entry.cell.name,
            "suite": entry.cell.suite,
            "asks": entry.cell.asks,
            "seconds": round(entry.seconds, 1),
            "recipe": entry.recipe.model_dump(mode="json", exclude_none=True),
            "predicted_allocated_bytes": entry.prediction.allocated_bytes or None,
            "predicted_reserved_bytes": entry.prediction.reserved_bytes or None,
            "capacity_bytes": entry.capacity_bytes,
            "not_predicted": entry.prediction.reason,
        }
        for entry in planned
    ]
    return json.dumps({"schema_version": 1, "cells": rows}, indent=2)
