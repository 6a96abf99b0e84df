"""`memplan export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.estimate import PANEL
from memplan.cli.output import write_message, write_text
from memplan.errors import InputError, UnavailableError, UnknownNameError
from memplan.recipe import Recipe

TARGETS = ("accelerate", "axolotl", "deepspeed", "k8s", "llamafactory", "memory-viz", "slurm", "torchtune", "trl")

ToOption = Annotated[
    str | None,
    typer.Option("--to", metavar="|".join(TARGETS), help="What to write.", rich_help_panel=PANEL),
]
IntoOption = Annotated[
    Path | None,
    typer.Option(
        "--into",
        metavar="FILE",
        help="A config to change: only what the recipe says, and the diff is shown. Without RECIPE_FILE the options change it.",
        rich_help_panel=PANEL,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Where to write; may be FILE itself.", rich_help_panel=PANEL),
]


def export(recipe: Recipe, *, to: ToOption = None, into: IntoOption = None, out: OutOption = None) -> int:
    """Write a recipe as a config to launch: a new one on stdout, or the least change of one that is there.

    With --into the unified diff goes to stdout, and the changed file to --out. Whatever is written is read back and compared
    with the recipe first. Exit code 3: the format cannot say something in the recipe.
    """
    target = _target(to, into)
    if target in ("slurm", "k8s", "memory-viz"):
        if into is not None:
            raise InputError(f"--into is for training configs, not for {target}", hint="leave it out")
        return _resources(recipe, target, out)
    from memplan.interop.writing import write

    written = write(recipe, target, into)
    for text in written.implied:
        write_message(text, kind="note")
    if into is not None:
        write_text(written.diff)
    if out is not None:
        _save(out, written.text.encode())
    elif into is None:
        write_text(written.text)
    return 0


def _target(to: str | None, into: Path | None) -> str:
    if to is None:
        if into is None:
            raise InputError("what to write is not named", hint="--to " + " | ".join(TARGETS))
        from memplan.interop import detect_file

        to = detect_file(into)
    if to not in TARGETS:
        raise UnknownNameError("export format", to, TARGETS)
    return to


def _resources(recipe: Recipe, target: str, out: Path | None) -> int:
    if target == "memory-viz":
        from memplan.interop.memory_viz import snapshot_bytes

        if out is None:
            raise InputError("a snapshot is no text", hint="say where to write it: --out step.pickle")
        _save(out, snapshot_bytes(recipe))
        return 0
    from memplan.engine import estimate
    from memplan.interop.scheduler import kubernetes, slurm

    answer = estimate(recipe)
    text = slurm(answer) if target == "slurm" else kubernetes(answer)
    if out is not None:
        _save(out, text.encode())
    else:
        write_text(text)
    return 0


def _save(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from None
