"""`memplan explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from memplan.cli.estimate import PANEL, JsonOption, MarkdownOption, check_formats
from memplan.cli.options import no_model
from memplan.cli.output import write_json, write_report
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.estimate import Component
from memplan.recipe import Recipe

_TOP = 8

ClassicOption = Annotated[
    bool,
    typer.Option(
        "--classic",
        help="The rule of 16 bytes a parameter beside the exact figures; by default for Mistral-7B.",
        rich_help_panel=PANEL,
    ),
]
ComponentOption = Annotated[
    list[str] | None,
    typer.Option("--component", metavar="NAME", help="Only this component; may be repeated.", rich_help_panel=PANEL),
]
TopOption = Annotated[
    int | None,
    typer.Option("--top", metavar="N", help=f"Lines a component; 0 for all. [{_TOP}]", rich_help_panel=PANEL),
]


def explain(
    recipe: Recipe | None,
    *,
    classic: ClassicOption = False,
    component: ComponentOption = None,
    top: TopOption = None,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> int:
    """What is alive at the peak, line by line, each with its formula in symbols and in numbers."""
    from memplan.engine import estimate
    from memplan.report.receipt import receipt_json, receipt_report

    check_formats(as_json, markdown)
    if classic:
        return _explain_classic(recipe, as_json, markdown)
    if recipe is None:
        raise no_model()
    components = [_component(name) for name in component or ()]
    if top is not None and top < 0:
        raise InvalidValueError("top", top, "0 for all lines, or how many")
    answer = estimate(recipe)
    if as_json:
        write_json(receipt_json(answer, components=components, top=top or 0))
    else:
        report = receipt_report(answer, components=components, top=_TOP if top is None else top)
        write_report(report, markdown=markdown)
    return 0


def _explain_classic(recipe: Recipe | None, as_json: bool, markdown: bool) -> int:
    from memplan.classic import classic_accounting
    from memplan.report.classic import classic_json, classic_report

    accounting = classic_accounting(recipe)
    if as_json:
        write_json(classic_json(accounting))
    else:
        write_report(classic_report(accounting), markdown=markdown)
    return 0


def _component(name: str) -> Component:
    try:
        return Component(name.strip().lower().replace("-", "_").replace(" ", "_"))
    except ValueError:
        allowed = [component.value for component in Component]
        raise UnknownNameError("component", name, allowed) from None
