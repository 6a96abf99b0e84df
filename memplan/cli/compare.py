"""`memplan compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.estimate import PANEL, JsonOption, MarkdownOption, check_formats
from memplan.cli.options import no_model
from memplan.cli.output import write_json, write_report, write_text
from memplan.errors import InputError, InvalidValueError
from memplan.recipe import Recipe

_PAGE = Path(__file__).resolve().parent.parent / "step" / "AGREEMENT.md"

MatrixOption = Annotated[
    bool,
    typer.Option(
        "--matrix",
        help="Compare a sample of small models in which every pair of choices occurs; takes minutes.",
        rich_help_panel=PANEL,
    ),
]
CellsOption = Annotated[
    int | None,
    typer.Option("--cells", metavar="N", help="Recipes of the sample, at least. [600]", rich_help_panel=PANEL),
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", help="Processes that trace at a time. [2]", rich_help_panel=PANEL),
]
WriteOption = Annotated[
    bool,
    typer.Option("--write", help="Write the table to memplan/step/AGREEMENT.md as well.", rich_help_panel=PANEL),
]


def compare(
    recipe: Recipe | None,
    *,
    matrix: MatrixOption = False,
    cells: CellsOption = None,
    jobs: JobsOption = None,
    write: WriteOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> int:
    """Estimate and trace of a recipe side by side: live bytes at every phase's peak and end.

    Needs the extra: pip install 'memplan[trace]'. Exit codes: 0 equal, or the sample meets its goal; 1 not; 3 there is nothing
    to compare; 4 without the extra.
    """
    check_formats(as_json, markdown)
    for name, value in (("cells", cells), ("jobs", jobs)):
        if value is not None and value < 1:
            raise InvalidValueError(name, value, "a whole number from 1")
    if matrix:
        if recipe is not None:
            raise InputError("--matrix takes no recipe", hint="memplan compare RECIPE compares one")
        return _matrix(cells, jobs or 2, write, as_json)
    if cells is not None or jobs is not None or write:
        raise InputError("--cells, --jobs and --write belong to --matrix", hint="memplan compare --matrix --cells 600")
    if recipe is None:
        raise no_model()
    return _one(recipe, as_json, markdown)


def _one(recipe: Recipe, as_json: bool, markdown: bool) -> int:
    from memplan.compare import compare as compare_all
    from memplan.report.agreement import comparison_json, comparison_report

    comparison = compare_all([recipe])[0]
    if as_json:
        write_json(comparison_json(comparison))
    else:
        write_report(comparison_report(comparison), markdown=markdown)
    if comparison.refusal:
        return 3
    return 0 if comparison.is_equal else 1


def _matrix(cells: int | None, jobs: int, write: bool, as_json: bool) -> int:
    """The sample; its page is Markdown in any case."""
    from memplan.agreement import CELLS, meets_goal, run, sample, to_markdown

    chosen = sample(cells or CELLS)
    sys.stderr.write(f"tracing {len(chosen)} recipes\n")
    results = run(chosen, jobs=jobs)
    is_met = meets_goal(results)
    page = to_markdown(results)
    if write:
        _PAGE.write_text(page, encoding="utf-8")
    if as_json:
        from memplan.report.agreement import sample_json

        write_json(sample_json(results, meets_goal=is_met))
    else:
        write_text(page)
    return 0 if is_met else 1
