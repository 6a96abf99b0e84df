"""`memplan check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memplan.cli.output import is_terminal, write_report, write_text
from memplan.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from memplan.budget.result import CheckReport


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, show_default=False)


Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE",
        help="A budget file; by default memplan.toml or [tool.memplan] in pyproject.toml, here or above, up to the top of "
        "the repository. Or recipes and training configs, for --budget and --gpu.",
    ),
]
BaseOption = Annotated[
    str | None, _option("--base", "REF|auto", "Git ref to compare with; auto is the merge base with the target branch.")
]
FormatOption = Annotated[str, _option("--format", "text|json|markdown|github|junit", "Form of the report.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
OnUncertainOption = Annotated[
    str | None, _option("--on-uncertain", "fail|warn|pass", "Instead of what the budget file says.")
]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 instead of 1 and 3, for trials.")]
BudgetOption = Annotated[str | None, _option("--budget", "SIZE", 'Of each FILE that is no budget file, e.g. "72 GiB".')]
GpuOption = Annotated[str | None, _option("--gpu", "NAME", "Of each FILE that is no budget file and names none.")]
IncreaseOption = Annotated[
    str | None, _option("--max-increase", "SIZE|SHARE", 'Of each FILE that is no budget file: "1 GiB" or "+5%".')
]
Suggest = Annotated[
    bool,
    typer.Option(
        "--suggest/--no-suggest", help="Search the least painful change for what is over.", show_default=False
    ),
]
Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a budget file and exit.")]


def check(
    files: Files = None,
    *,
    base: BaseOption = None,
    form: FormatOption = "text",
    as_json: Json = False,
    on_uncertain: OnUncertainOption = None,
    exit_zero: ExitZero = False,
    budget: BudgetOption = None,
    gpu: GpuOption = None,
    max_increase: IncreaseOption = None,
    suggest: Suggest = True,
    schema: Schema = False,
) -> int:
    """Judge training runs by their memory budgets, also against a git ref.

    Exit code 0: all are within their limits, or only warn. 1: one is over, or grew too much. 2: wrong usage, budget file,
    recipe or config. 3: one is uncertain or not covered, and its on_uncertain is fail. 4: a file or a git ref is missing.
    Of several, 2 comes before 4, 4 before 1, and 1 before 3. --exit-zero replaces 1 and 3 alone.
    """
    from memplan.budget.formats import Format, rendered

    if schema:
        from memplan.budget.schema import schema_text

        write_text(schema_text())
        return 0
    if form not in list(Format):
        raise UnknownNameError("--format", form, list(Format))
    if as_json and form not in ("text", "json"):
        raise InputError(f"--json and --format {form} exclude each other")
    chosen = Format.JSON if as_json else Format(form)
    limits = {"--budget": budget, "--gpu": gpu, "--max-increase": max_increase}
    report = _report(files or [], base, on_uncertain, suggest, limits)
    if chosen is Format.TEXT and is_terminal():
        from memplan.budget.formats.text import check_report

        write_report(check_report(report))
    else:
        write_text(rendered(report, chosen))
    return 0 if exit_zero and report.exit_code in (1, 3) else report.exit_code


def _report(
    files: list[Path], base: str | None, on_uncertain: str | None, suggest: bool, limits: dict[str, str | None]
) -> CheckReport:
    from memplan.budget import check as judge
    from memplan.budget import check_files
    from memplan.budget.find import is_config

    budgets = [path for path in files if is_config(path)]
    if budgets or not files:
        if len(files) > 1:
            raise InputError(f"{budgets[0]} is a budget file: give it alone", hint="it names its own files")
        given = [name for name, value in limits.items() if value is not None]
        if given:
            raise InputError(
                f"{given[0]} is for recipes and configs that are named here",
                hint="write the limit into the budget file, or name the file that it is for",
            )
        return judge(budgets[0] if budgets else None, base=base, on_uncertain=on_uncertain, suggest=suggest)
    return check_files(
        files,
        budget=limits["--budget"],
        gpu=limits["--gpu"],
        max_increase=limits["--max-increase"],
        base=base,
        on_uncertain=on_uncertain,
        suggest=suggest,
    )
