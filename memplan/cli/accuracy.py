"""`memplan accuracy`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

SourceArgument = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="A source of records; by default all of them.")
]
ByOption = Annotated[
    Literal["source", "method", "family", "gpu", "precision"] | None,
    typer.Option("--by", help="One line for each of these.", show_default=False),
]
EngineOption = Annotated[Literal["estimate", "trace", "both"], typer.Option("--engine", help="Which answer is scored.")]
FormatOption = Annotated[
    Literal["text", "json", "markdown", "html"], typer.Option("--format", help="Form of the answer.")
]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


def accuracy(
    source: SourceArgument = None,
    *,
    by: ByOption = None,
    engine: EngineOption = "estimate",
    form: FormatOption = "text",
    as_json: Json = False,
) -> int:
    """How far estimates are from measured runs, on the records that come with memplan."""
    from memplan.evidence import run_accuracy

    text = run_accuracy(source, by, "json" if as_json else form, engine)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    return 0
