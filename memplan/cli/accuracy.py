"""`memplan accuracy`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memplan.cli.output import write_text

SourceOption = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="A source of records; by default all of them.", show_default=False),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by", metavar="source|method|family|gpu|precision", help="One line for each of these.", show_default=False
    ),
]
LevelOption = Annotated[
    str | None,
    typer.Option("--level", metavar="allocated|reserved|device", help="Readings of one level.", show_default=False),
]
EngineOption = Annotated[str, typer.Option("--engine", metavar="estimate|trace|both", help="Which answer is scored.")]
FormatOption = Annotated[str, typer.Option("--format", metavar="text|json|markdown|html", help="Form of the answer.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


def accuracy(
    *,
    source: SourceOption = None,
    by: ByOption = None,
    level: LevelOption = None,
    engine: EngineOption = "estimate",
    form: FormatOption = "text",
    as_json: Json = False,
) -> int:
    """How far estimates are from measured runs, on the records that come with memplan."""
    from memplan.evidence import run_accuracy

    # Its Literals are checked by it, in its own words.
    names: dict[str, Any] = {"format": "json" if as_json else form, "engine": engine}
    text = run_accuracy(source, by, level=level, **names)
    write_text(text if text.endswith("\n") else text + "\n")
    return 0
