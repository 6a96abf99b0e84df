"""`memplan plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memplan.cli.estimate import FailOn, FailOnOption, JsonOption, MarkdownOption, check_formats
from memplan.cli.output import write_json, write_report
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.estimate import Fits
from memplan.recipe import Recipe
from memplan.units import parse_bytes

if TYPE_CHECKING:
    from memplan.planner import Quantity

PANEL = "Plan"


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=PANEL, show_default=False)


BudgetOption = Annotated[
    str | None, _option("--budget", "SIZE", "Device memory that the run may take, e.g. 20GiB; with --gpu, of that GPU.")
]
KeepOption = Annotated[list[str] | None, _option("--keep", "KEYS", "Recipe keys that stay as they are.")]
AllowOption = Annotated[list[str] | None, _option("--allow", "KEYS", "The only recipe keys that may change.")]
LargestOption = Annotated[
    list[str] | None, _option("--largest", "QUANTITIES", "How far these can go: batch, sequence, rank, model.")
]
PricesOption = Annotated[
    str | None, _option("--prices", "PRICES|FILE", "What GPUs cost: rtx-4090=0.35,h100=2.5, or a TOML file of them.")
]
LengthsOption = Annotated[
    Path | None,
    _option("--lengths", "FILE", "Lengths of the samples in tokens: one a line, or a JSON list or histogram."),
]
MaxChangesOption = Annotated[
    str, _option("--max-changes", "INT", "How many changes a combination may have (3 unless given).")
]
TierOption = Annotated[
    str, _option("--tier", "INT", "Leave out what costs more: 1 same result, 2 slower, 3 other training, 4 other GPU.")
]


def plan(
    recipe: Recipe,
    *,
    budget: BudgetOption = None,
    keep: KeepOption = None,
    allow: AllowOption = None,
    max_changes: MaxChangesOption = "3",
    tier: TierOption = "4",
    largest: LargestOption = None,
    prices: PricesOption = None,
    lengths: LengthsOption = None,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
    fail_on: FailOnOption = None,
) -> int:
    """What to change so that a run fits, least painful first.

    Exit code 0: it fits, or a change makes it fit. 1: nothing that was searched fits. 2: wrong input. 3: as --fail-on asks.
    """
    from memplan.planner import plan as search
    from memplan.planner.hardware import read_prices
    from memplan.planner.lengths import read_lengths

    check_formats(as_json, markdown, fail_on)
    found = search(
        recipe,
        budget_bytes=parse_bytes(budget, key="--budget") if budget is not None else None,
        keep=_keys(keep),
        allow=_keys(allow) if allow else None,
        highest_tier=_whole("--tier", tier),
        max_changes=_whole("--max-changes", max_changes),
        largest=_quantities(largest),
        prices=read_prices(prices) if prices is not None else None,
        lengths=read_lengths(lengths) if lengths is not None else None,
    )
    if as_json:
        write_json(found.to_json())
    else:
        from memplan.report.plan import plan_report

        write_report(plan_report(found), markdown=markdown)
    if found.fits is Fits.FITS:
        return 0
    missing = fail_on == FailOn.UNSUPPORTED and found.current.unsupported
    uncertain = fail_on == FailOn.UNCERTAIN and found.fits is Fits.UNCERTAIN
    return 3 if missing or uncertain else 1


def _keys(texts: list[str] | None) -> list[str]:
    """Recipe keys of one or several options, with underscores or as options are spelled."""
    return [word.removeprefix("--").replace("-", "_") for word in _words(texts)]


def _quantities(texts: list[str] | None) -> list[Quantity]:
    from memplan.planner.boundary import QUANTITIES

    words = _words(texts)
    by_name = {str(quantity): quantity for quantity in QUANTITIES}
    for word in words:
        if word not in by_name:
            raise UnknownNameError("--largest", word, QUANTITIES)
    return [by_name[word] for word in dict.fromkeys(words)]


def _words(texts: list[str] | None) -> list[str]:
    """What stands between the commas of one or several options."""
    return [word.strip() for text in texts or () for word in text.split(",") if word.strip()]


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise InvalidValueError(name, text, "a whole number")
    return int(text)
