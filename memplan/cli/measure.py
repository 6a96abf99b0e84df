"""`memplan measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memplan.cli.estimate import (
    DefaultsOption,
    FailOnOption,
    JsonOption,
    MarkdownOption,
    check_formats,
    show,
)
from memplan.cli.options import no_model
from memplan.cli.output import write_json, write_text
from memplan.errors import InputError, InvalidValueError, UnavailableError, UnknownNameError
from memplan.recipe import Recipe

if TYPE_CHECKING:
    from memplan.measure.campaign import Planned, Prediction

_PANEL = "Measurement"
# Without a GPU at hand a suite is planned for this one.
_PLANNED_GPU = "h100-sxm-80gb"


def _option(name: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=_PANEL, show_default=False)


DeviceOption = Annotated[
    str, _option("--device", "cpu runs the same steps without a GPU, for testing. [cuda]", "cuda|cpu")
]
StepsOption = Annotated[int, typer.Option("--steps", min=2, max=1000, help="Optimizer steps.", rich_help_panel=_PANEL)]
CapacityOption = Annotated[str | None, _option("--capacity", "Limit torch's allocator, such as 16GiB.", "SIZE")]
HistoryOption = Annotated[
    Path | None, _option("--history", "Keep every reading and allocator event in this file, as JSON.", "FILE")
]
TimeoutOption = Annotated[
    int | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Time for one run.", rich_help_panel=_PANEL)
]
SuiteOption = Annotated[
    str | None, _option("--suite", "Run cells instead of a recipe: core, methods, stress, or all.", "NAME")
]
ListOption = Annotated[bool, _option("--list", "Only say what the suite would run, with predictions.")]
OnlyOption = Annotated[str | None, _option("--only", "Cells of the suite whose name holds this.", "TEXT")]
MinutesOption = Annotated[
    float | None,
    typer.Option("--minutes", metavar="N", min=0.1, help="Time for the whole suite.", rich_help_panel=_PANEL),
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", min=1, max=100, help="Runs of every cell.", rich_help_panel=_PANEL)
]
SkipOption = Annotated[
    bool, _option("--skip-recorded", "Pass over cells that have a committed record, or one in --out or --bundle.")
]
OutOption = Annotated[Path | None, _option("--out", "Write one record a file into this directory.", "DIR")]
BundleOption = Annotated[Path | None, _option("--bundle", "Append records to this one file, a line each.", "FILE")]
UnpackOption = Annotated[
    Path | None, _option("--unpack", "Write the records of a bundle as files into --out, and do nothing else.", "FILE")
]


def measure(
    recipe: Recipe | None,
    *,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
    defaults: DefaultsOption = False,
    fail_on: FailOnOption = None,
    device: DeviceOption = "cuda",
    steps: StepsOption = 3,
    capacity: CapacityOption = None,
    history: HistoryOption = None,
    timeout: TimeoutOption = None,
    suite: SuiteOption = None,
    listing: ListOption = False,
    only: OnlyOption = None,
    minutes: MinutesOption = None,
    repeats: RepeatsOption = 1,
    skip_recorded: SkipOption = False,
    out: OutOption = None,
    bundle: BundleOption = None,
    unpack: UnpackOption = None,
) -> int:
    """The same answer from a few real steps with random weights on a GPU; takes about a minute, downloads nothing.

    Needs the extra: pip install 'memplan[trace]'. Exit codes as for estimate; 4 without a GPU or without the extra.
    """
    check_formats(as_json, markdown, fail_on)
    if device not in ("cuda", "cpu"):
        raise UnknownNameError("--device", device, ("cuda", "cpu"))
    if unpack is not None:
        return _unpack(unpack, out)
    if suite is not None:
        if recipe is not None:
            raise InputError("a suite brings its own recipes", hint="leave the recipe out, or leave --suite out")
        planned = _planned(suite, only, device, steps, listing)
        if listing:
            return _list(planned, as_json)
        return _suite(planned, device, steps, minutes, repeats, skip_recorded, out, bundle, as_json)
    _refuse({"--list": listing, "--only": only, "--minutes": minutes, "--skip-recorded": skip_recorded, "--out": out,
             "--bundle": bundle, "--repeats": repeats != 1})  # fmt: skip
    if recipe is None:
        raise no_model()
    from memplan.measure.cli import measure as measure_recipe
    from memplan.resolve import resolve
    from memplan.units import parse_bytes

    limit = parse_bytes(capacity, key="--capacity") if capacity is not None else None
    if limit is not None and device == "cpu":
        raise InputError("--capacity limits a GPU's allocator; the CPU has none", hint="leave --device cpu out")
    answer, _ = measure_recipe(
        resolve(recipe),
        device="cpu" if device == "cpu" else "cuda",
        steps=steps,
        capacity_bytes=limit,
        timeout_s=timeout,
        history=history,
    )
    return show(answer, as_json=as_json, markdown=markdown, defaults=defaults, fail_on=fail_on)


def _refuse(given: dict[str, Any]) -> None:
    found = [name for name, value in given.items() if value]
    if found:
        raise InputError(f"{found[0]} belongs to a suite", hint="name one: --suite core, methods, stress or all")


def _unpack(bundle: Path, out: Path | None) -> int:
    from memplan.measure.record import unpack

    if out is None:
        raise InputError("--unpack needs --out DIR, where the records go")
    for path in unpack(bundle, out):
        write_text(f"{path}\n")
    return 0


def _planned(suite: str, only: str | None, device: str, steps: int, listing: bool) -> list[Planned]:
    from memplan.measure.campaign import plan
    from memplan.measure.cli import measured_gpu_name
    from memplan.measure.suite import cells, suite_names
    from memplan.resolve import resolve

    if suite != "all" and suite not in suite_names():
        raise UnknownNameError("suite", suite, (*suite_names(), "all"))
    chosen = [cell for cell in cells(None if suite == "all" else suite) if only is None or only in cell.name]
    if not chosen:
        raise InvalidValueError("--only", only, "part of the name of a cell", hint="--list shows the names")
    gpu = None
    if device == "cuda" and not listing:
        from memplan.measure.worker import no_gpu

        name = measured_gpu_name()
        if name is None:
            error = no_gpu()
            names = f"--suite {suite}" + (f" --only {only}" if only else "")
            hint = f"{len(chosen)} cells are ready: memplan measure {names} --list prints them, with the time each is given"
            raise UnavailableError(
                error.message, hint=f"{hint}\n--device cpu runs their steps for testing", code=error.code
            )
        gpu = _catalog_id(name)
    elif device == "cuda":
        gpu = _PLANNED_GPU
    return plan(chosen, resolve, predict, gpu=gpu, steps=steps)


def _catalog_id(name: str) -> str | None:
    from memplan.catalog.gpus import get_gpu

    try:
        return get_gpu(name).id
    except UnknownNameError:
        sys.stderr.write(f"{name} is not in the catalog (memplan gpus): recipes go without a GPU\n")
        return None


def predict(recipe: Recipe) -> Prediction:
    """What the analytic engine says of a cell: the engine is called here, so that the measurement does not know it."""
    from memplan.engine import estimate
    from memplan.errors import MemplanError
    from memplan.measure.campaign import Prediction
    from memplan.verdict import upper_reserved_bytes

    try:
        answer = estimate(recipe)
    except MemplanError as error:
        return Prediction(reason=error.message)
    peak, verdict = answer.peak, answer.verdict_report
    return Prediction(
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes,
        device_bytes=peak.device_bytes,
        upper_reserved_bytes=upper_reserved_bytes(verdict) if verdict else 0,
        parameters=answer.parameters.total,
        reason="; ".join(answer.unsupported),
    )


def _list(planned: list[Planned], as_json: bool) -> int:
    from memplan.measure.cli import plan_json
    from memplan.measure.table import plan_table

    if as_json:
        write_json(plan_json(planned))
        return 0
    minutes = sum(entry.seconds for entry in planned) / 60
    unknown = [entry for entry in planned if entry.prediction.reason]
    write_text(f"{plan_table(planned)}\n\n{len(planned)} cells, {minutes:.1f} minutes planned\n")
    if unknown:
        write_text(
            f"{len(unknown)} cells have no estimate (their bytes are missing above); they are measured all the same\n"
        )
    return 0


def _suite(
    planned: list[Planned],
    device: str,
    steps: int,
    minutes: float | None,
    repeats: int,
    skip_recorded: bool,
    out: Path | None,
    bundle: Path | None,
    as_json: bool,
) -> int:
    from memplan import __version__
    from memplan.evidence.measured import MEASURED_DIRECTORY
    from memplan.measure.cli import SuiteOptions, reports_json, run_suite

    recorded = tuple(place for place in (MEASURED_DIRECTORY, out, bundle) if place is not None)
    options = SuiteOptions(
        directory=out,
        bundle=bundle,
        recorded=recorded if skip_recorded else (),
        minutes=minutes,
        steps=steps,
        repeats=repeats,
        device="cpu" if device == "cpu" else "cuda",
    )
    reports = run_suite(planned, options, sys.stderr if as_json else sys.stdout, version=__version__)
    if as_json:
        write_json(reports_json(reports))
    return 0
