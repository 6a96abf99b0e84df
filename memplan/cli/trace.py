"""`memplan trace`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from memplan.cli.estimate import (
    PANEL,
    DefaultsOption,
    FailOn,
    FailOnOption,
    JsonOption,
    MarkdownOption,
    check_formats,
    exit_code,
    show,
)
from memplan.errors import InputError
from memplan.recipe import Recipe

EventsOption = Annotated[
    str | None,
    typer.Option(
        "--events",
        metavar="FILE|-",
        help="Write every birth and death of a storage, one JSON object a line; - is stdout, and the answer is not shown.",
        rich_help_panel=PANEL,
    ),
]
MemoryVizOption = Annotated[
    Path | None,
    typer.Option(
        "--memory-viz", metavar="FILE", help="Write a snapshot for PyTorch's memory viewer.", rich_help_panel=PANEL
    ),
]
LayersOption = Annotated[
    str,
    typer.Option(
        "--layers",
        metavar="full|auto|N",
        help="How deep to trace: all layers, or 6 (auto) or N of them, extrapolated where layers are equal.",
        rich_help_panel=PANEL,
    ),
]
TimeoutOption = Annotated[
    int | None,
    typer.Option("--timeout", metavar="SECONDS", min=1, help="How long the trace may take.", rich_help_panel=PANEL),
]


def trace(
    recipe: Recipe,
    *,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
    defaults: DefaultsOption = False,
    fail_on: FailOnOption = None,
    layers: LayersOption = "full",
    events: EventsOption = None,
    memory_viz: MemoryVizOption = None,
    timeout: TimeoutOption = None,
) -> int:
    """The same answer from the real model, method and optimizer on fake CUDA tensors; takes seconds, needs no GPU.

    Needs the extra: pip install 'memplan[trace]'. Exit codes as for estimate; 4 without the extra.
    """
    from memplan.resolve import resolve
    from memplan.trace.cli import answer, check_layers

    check_formats(as_json, markdown, fail_on)
    check_layers(layers)
    if events == "-" and (as_json or markdown):
        raise InputError("--events - and --json or --markdown both want stdout", hint="name a file: --events FILE")
    with _opened(events) as stream, _progress() as progress:
        found = answer(
            resolve(recipe, described_only=False),
            events=stream,
            memory_viz=memory_viz,
            timeout_s=timeout,
            layers=layers,
            progress=progress,
        )
    if events == "-":
        return exit_code(found, FailOn(fail_on) if fail_on else None)
    return show(found, as_json=as_json, markdown=markdown, defaults=defaults, fail_on=fail_on)


@contextmanager
def _opened(events: str | None) -> Iterator[TextIO | None]:
    """Where the event list goes: a file, stdout for `-`, or nowhere.

    Raises:
        InputError: the file cannot be written.
    """
    if events in (None, "-"):
        yield sys.stdout if events else None
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(str(events)).open("w", encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{events} cannot be written: {error.strerror}", hint="--events FILE, or - for stdout"
            ) from None
        yield stream


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None] | None]:
    """A bar on stderr while the trace runs, where stderr is a terminal; it goes when the answer comes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("tracing"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading the libraries", total=1.0)
        yield lambda fraction, words: bar.update(task, completed=fraction, description=words)
