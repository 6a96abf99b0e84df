"""`memplan calibrate`."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from memplan.cli.output import write_json, write_text
from memplan.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from memplan.catalog.gpus import Gpu
    from memplan.measure.campaign import Planned, Report
    from memplan.profiles import Profile

# Cells of the suites that tell most about a card, largest last; those that may not fit are left out.
CELLS = ("2l-lora", "2l-qlora", "1b-lora", "2l-full", "2l-full-ckpt", "1b-full", "1b-full-adamw-8bit", "8b-qlora-ckpt")
_ROOM = (85, 100)

MinutesOption = Annotated[float, typer.Option("--minutes", metavar="N", min=0.5, help="Time for all runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The profile as JSON alone on stdout.")]
ForgetOption = Annotated[bool, typer.Option("--forget", help="Delete the profiles of this machine's cards.")]


def calibrate(*, minutes: MinutesOption = 5.0, as_json: JsonOption = False, forget: ForgetOption = False) -> int:
    """A few short runs on this machine's GPU; verdicts on it then use its CUDA context and name the profile.

    Kept in $MEMPLAN_DATA_DIR or the XDG data directory, for this machine's command line alone. A few runs never narrow a
    margin: they widen it where they exceed it. Exit code 4 without a GPU.
    """
    if forget:
        return _forget()
    from memplan.measure.cli import SuiteOptions, measured_gpu_name, run_suite
    from memplan.measure.worker import no_gpu
    from memplan.profiles import write_profile

    name = measured_gpu_name()
    if name is None:
        raise no_gpu()
    gpu = _known(name)
    planned = _planned(gpu)
    if not planned:
        raise InputError(f"none of the calibration runs is certain to fit on {gpu.name}", hint="memplan measure RECIPE")
    reports = run_suite(planned, SuiteOptions(minutes=minutes), sys.stderr)
    profile = profile_of(gpu, reports, dt.date.today().isoformat())
    path = write_profile(profile)
    if as_json:
        write_json(profile.model_dump_json(indent=2))
        return 0
    write_text(_summary(gpu, profile) + f"kept in {path}\n")
    return 0


def _forget() -> int:
    from memplan.local_data import profiles_directory

    for path in sorted(profiles_directory().glob("*.json")):
        path.unlink()
        write_text(f"deleted {path}\n")
    return 0


def _known(name: str) -> Gpu:
    from memplan.catalog.gpus import get_gpu
    from memplan.errors import UnknownNameError

    try:
        return get_gpu(name)
    except UnknownNameError as error:
        raise UnknownNameError(
            "GPU", name, error.allowed, hint="a profile needs a card of the catalog", show=0
        ) from None


def _planned(gpu: Gpu) -> list[Planned]:
    from memplan.cli.measure import predict
    from memplan.measure.campaign import plan
    from memplan.measure.suite import cells
    from memplan.resolve import resolve

    by_name = {cell.name: cell for cell in cells()}
    planned = plan([by_name[name] for name in CELLS], resolve, predict, gpu=gpu.id, steps=3)
    room = gpu.usable_bytes * _ROOM[0] // _ROOM[1]
    return [entry for entry in planned if not entry.prediction.reason and entry.prediction.device_bytes <= room]


def profile_of(gpu: Gpu, reports: list[Report], date: str) -> Profile:
    """The profile that measured cells make.

    Raises:
        UnavailableError: no cell gave a reading.
    """
    from memplan.catalog.calibration import run_of
    from memplan.evidence.calibration import Point, rows_of
    from memplan.profiles import Profile, ProfiledRun, row_values

    points, runs, contexts = [], [], []
    results = [(report, report.result) for report in reports if report.result is not None and report.status == "ok"]
    for report, result in results:
        entry, measured = report.planned, result.max_reserved_bytes
        predicted = entry.prediction.reserved_bytes
        if measured is None or not predicted:
            continue
        run = run_of(entry.resolved.values, str(entry.resolved.config["model_type"]))
        excess = (measured - predicted) / predicted
        key = entry.recipe.model_dump_json(exclude_none=True)
        points.append(Point(gpu.id, run.kind, key, entry.cell.name, run.family, predicted, excess, True, date))
        runs.append(
            ProfiledRun(
                cell=entry.cell.name,
                kind=run.kind,
                family=run.family,
                predicted_reserved_bytes=predicted,
                measured_reserved_bytes=measured,
            )
        )
        contexts += [result.device.context_bytes] if result.device.context_bytes is not None else []
    if not runs:
        raise UnavailableError("no run gave a reading", hint="the table above says why", code="nothing_measured")
    first = results[0][1]
    return Profile(
        gpu=gpu.id,
        device=first.environment.get("gpu", ""),
        date=date,
        driver=first.environment.get("driver", ""),
        torch=first.environment.get("torch", ""),
        total_bytes=first.device.torch_total_bytes or 0,
        context_bytes=max(contexts) if contexts else None,
        runs=tuple(runs),
        rows=tuple(row_values(row) for row in rows_of(points)),
    )


def _summary(gpu: Gpu, profile: Profile) -> str:
    from memplan.units import format_bytes

    lines = [f"{gpu.name} ({profile.device}): {len(profile.runs)} runs"]
    if profile.context_bytes is not None:
        lines.append(f"CUDA context {format_bytes(profile.context_bytes)}, used by verdicts from now on")
    for row in profile.rows:
        lines.append(f"{row['kind']}: reserved at most {row['worst_ppm'] / 10_000:.1f} % above the estimate")
    if profile.total_bytes and profile.total_bytes < gpu.usable_bytes:
        lines.append(
            f"torch sees {format_bytes(profile.total_bytes)} of this card, less than the catalog's "
            f"{format_bytes(gpu.usable_bytes)}: judge with a budget of that"
        )
    return "\n".join(lines) + "\n"
