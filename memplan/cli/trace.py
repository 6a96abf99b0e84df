"""`memplan trace`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.estimate import (
    PANEL,
    DefaultsOption,
    FailOnOption,
    JsonOption,
    MarkdownOption,
    check_formats,
    show,
)
from memplan.recipe import Recipe

EventsOption = Annotated[
    bool, typer.Option("--events", help="Every allocation, one line each, on stderr.", rich_help_panel=PANEL)
]
MemoryVizOption = Annotated[
    Path | None,
    typer.Option(
        "--memory-viz", metavar="FILE", help="Write a snapshot for PyTorch's memory viewer.", rich_help_panel=PANEL
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
    events: EventsOption = False,
    memory_viz: MemoryVizOption = None,
    timeout: TimeoutOption = None,
) -> int:
    """The same answer from the real model, method and optimizer on fake CUDA tensors; takes seconds, needs no GPU.

    Needs the extra: pip install 'memplan[trace]'. Exit codes as for estimate; 4 without the extra.
    """
    from memplan.resolve import resolve
    from memplan.trace.cli import answer

    check_formats(as_json, markdown, fail_on)
    found = answer(resolve(recipe), events=sys.stderr if events else None, memory_viz=memory_viz, timeout_s=timeout)
    return show(found, as_json=as_json, markdown=markdown, defaults=defaults, fail_on=fail_on)
