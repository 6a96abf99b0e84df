"""`memplan estimate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from memplan.cli.output import write_json, write_report
from memplan.errors import InputError, UnknownNameError
from memplan.estimate import Estimate, Fits
from memplan.recipe import Recipe

PANEL = "Output"


class FailOn(StrEnum):
    """What else ends with exit code 3."""

    UNCERTAIN = "uncertain"
    UNSUPPORTED = "unsupported"


JsonOption = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.", rich_help_panel=PANEL)]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The report in Markdown.", rich_help_panel=PANEL)]
DefaultsOption = Annotated[
    bool,
    typer.Option("--defaults", help="List the whole recipe with where each value is from.", rich_help_panel=PANEL),
]
FailOnOption = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="uncertain|unsupported",
        help="Exit with 3 when the verdict is that, or something is not covered.",
        rich_help_panel=PANEL,
    ),
]


def estimate(
    recipe: Recipe,
    *,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
    defaults: DefaultsOption = False,
    fail_on: FailOnOption = None,
) -> int:
    """How much memory a run needs, where it goes, and whether it fits.

    Exit code 0: it fits, or no GPU is named. 1: it does not fit. 2: wrong input. 3: as --fail-on asks.
    """
    from memplan.engine import estimate as analytic

    check_formats(as_json, markdown, fail_on)
    return show(analytic(recipe), as_json=as_json, markdown=markdown, defaults=defaults, fail_on=fail_on)


def show(answer: Estimate, *, as_json: bool, markdown: bool, defaults: bool, fail_on: str | None) -> int:
    """Write an answer in the form asked for; returns the exit code."""
    if as_json:
        write_json(answer.to_json())
    else:
        from memplan.report.estimate import estimate_report

        write_report(estimate_report(answer, defaults=defaults), markdown=markdown)
    return exit_code(answer, FailOn(fail_on) if fail_on else None)


def check_formats(as_json: bool, markdown: bool, fail_on: str | None = None) -> None:
    """Refuse output options that make no sense, before the work is done.

    Raises:
        InputError: two formats are asked for.
        UnknownNameError: `fail_on` is no `FailOn`.
    """
    if fail_on is not None and fail_on not in list(FailOn):
        raise UnknownNameError("--fail-on", fail_on, list(FailOn))
    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other")


def exit_code(answer: Estimate, fail_on: FailOn | None = None) -> int:
    """0 fits or not judged, 1 does not fit, 3 uncertain or unsupported where `fail_on` asks for it."""
    verdict = answer.verdict_report
    if verdict is not None and verdict.fits is Fits.DOES_NOT_FIT:
        return 1
    uncertain = verdict is not None and verdict.fits is Fits.UNCERTAIN
    if fail_on is not None and (answer.unsupported or (uncertain and fail_on is FailOn.UNCERTAIN)):
        return 3
    return 0
