"""From a recipe and a limit to everything that a plan says, and to the inverse questions alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from memplan.errors import InputError, InvalidValueError
from memplan.estimate import Fits
from memplan.planner.boundary import largest as find_largest
from memplan.planner.candidates import CandidateSpace
from memplan.planner.changes import keys_kept, legal_changes
from memplan.planner.hardware import best_gpus, checked_prices
from memplan.planner.lengths import Lengths
from memplan.planner.lengths import longest_sample as find_longest_sample
from memplan.planner.limit import Limit, limit_of
from memplan.planner.proposals import Proposer
from memplan.planner.result import Boundary, GpuOption, LengthReport, Plan, Quantity, Space, Tier
from memplan.planner.scoring import Scorer
from memplan.planner.search import Search
from memplan.recipe import Recipe
from memplan.resolve import resolve

DEFAULT_MAX_CHANGES = 3
MOST_CHANGES = 4
# Keys whose complete value is no value that a user could have said.
_NOT_PINNED = frozenset({"model", "peft", "method", "quantization_config", "task"})


def plan(
    recipe: Recipe | None = None,
    /,
    *,
    gpu: str | None = None,
    budget_bytes: int | None = None,
    keep: Collection[str] = (),
    allow: Collection[str] | None = None,
    highest_tier: int = Tier.HARDWARE,
    max_changes: int = DEFAULT_MAX_CHANGES,
    largest: Collection[Quantity] = (),
    prices: Mapping[str, float] | None = None,
    lengths: Lengths | None = None,
    **keys: Any,
) -> Plan:
    """What to change so that a recipe fits a GPU or a budget, least painful first.

    Args:
        recipe: a `Recipe`; or give its keys as keyword arguments. With both, the keywords change the recipe.
        gpu: the GPU, if the recipe does not name it.
        budget_bytes: device memory that the run may take, instead of or below what the GPU has.
        keep: recipe keys that stay as they are.
        allow: the only recipe keys that may be changed; None for all that are not kept.
        highest_tier: dearer changes are left out (see `Tier`).
        max_changes: how many changes a combination may have.
        largest: quantities whose largest fitting value is asked for: `batch`, `sequence`, `rank`, `model`.
        prices: what GPUs cost, by any of their names, in any unit.
        lengths: of the samples in tokens, or how many samples there are of each length.
        keys: recipe keys.

    Raises:
        InputError: the recipe or an option is wrong; says what, what is allowed, and what was probably meant.
        UnsupportedError: a method or optimizer for which not even the model states are known.
    """
    given, limit = given_recipe(recipe, gpu, budget_bytes, keys)
    if isinstance(max_changes, bool) or not isinstance(max_changes, int) or not 1 <= max_changes <= MOST_CHANGES:
        raise InvalidValueError("max_changes", max_changes, f"a number from 1 to {MOST_CHANGES}")
    if highest_tier not in list(Tier):
        raise InvalidValueError(
            "highest_tier", highest_tier, "1 same result, 2 slower, 3 different training, 4 hardware"
        )
    if isinstance(largest, str):
        raise InvalidValueError("largest", largest, "a list of quantities")
    keys_kept(keep, allow)
    known_prices = checked_prices(prices or {})
    scorer = Scorer(limit)
    proposer = Proposer(_pinned(given, keep), scorer, keep)
    changes, skipped = legal_changes(proposer.base.resolved, keep=keep, allow=allow, highest_tier=Tier(highest_tier))
    space = CandidateSpace(proposer, changes, max_changes)
    search = Search(space)
    current = search.propose(())
    assert current is not None
    singles = search.singles()
    fits_already = current.fits is Fits.FITS
    cheapest = None if fits_already else search.cheapest()
    smallest = search.smallest(cheapest) if cheapest is not None else None
    front = search.front()
    has_gpus = highest_tier == Tier.HARDWARE and (known_prices or not fits_already)
    gpus: tuple[GpuOption, ...] = ()
    if has_gpus and "gpu" not in keys_kept(keep, allow):
        gpus = best_gpus(proposer.recipe, known_prices, 0 if fits_already else limit.usable_bytes)
    return Plan(
        gpu=limit.gpu.id if limit.gpu else None,
        usable_bytes=limit.usable_bytes,
        recipe=dict(proposer.estimate.recipe),
        recipe_sources=proposer.estimate.recipe_sources,
        current=current,
        singles=tuple(singles),
        smallest=smallest,
        cheapest=cheapest,
        uncertain=tuple(search.uncertain()),
        pareto=tuple(front),
        gpus=gpus,
        largest=tuple(find_largest(proposer.recipe, quantity, scorer) for quantity in largest),
        lengths=None if lengths is None else find_longest_sample(proposer.recipe, lengths, scorer),
        space=Space(
            changes={knob: tuple(change.id for change in options) for knob, options in space.knobs.items()},
            max_changes=max_changes,
            combinations=space.count(),
            not_in_front=space.count() - space.count(Tier.SLOWER),
            judged=scorer.judged,
            skipped=tuple(skipped),
        ),
        assumptions=proposer.estimate.assumptions,
    )


def largest(
    recipe: Recipe | None = None,
    /,
    quantity: Quantity = "batch",
    *,
    gpu: str | None = None,
    budget_bytes: int | None = None,
    **keys: Any,
) -> Boundary:
    """The largest batch, sequence, rank or model that fits a GPU or a budget, everything else as the recipe says.

    Args:
        recipe: as for `plan`.
        quantity: `batch`, `sequence`, `rank` or `model`.
        gpu: as for `plan`.
        budget_bytes: as for `plan`.
        keys: recipe keys.

    Raises:
        InputError, UnsupportedError: as `plan`.
    """
    given, limit = given_recipe(recipe, gpu, budget_bytes, keys)
    return find_largest(given, quantity, Scorer(limit))


def longest_sample(
    recipe: Recipe | None = None,
    /,
    lengths: Lengths = (),
    *,
    gpu: str | None = None,
    budget_bytes: int | None = None,
    **keys: Any,
) -> LengthReport:
    """The peak of the longest batch that samples of these lengths can make, and the longest length that fits.

    Args:
        recipe: as for `plan`.
        lengths: in tokens, or how many samples there are of each length.
        gpu: as for `plan`.
        budget_bytes: as for `plan`.
        keys: recipe keys.

    Raises:
        InputError, UnsupportedError: as `plan`.
    """
    given, limit = given_recipe(recipe, gpu, budget_bytes, keys)
    return find_longest_sample(given, lengths, Scorer(limit))


def given_recipe(
    recipe: Recipe | None, gpu: str | None, budget_bytes: int | None, keys: Mapping[str, Any]
) -> tuple[Recipe, Limit]:
    """The recipe with its GPU, and the limit.

    Raises:
        InputError: no recipe, two GPUs, or no limit.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise InputError(
            f"a Recipe was expected, not {type(recipe).__name__}",
            hint='for example plan(model="...", method="lora", gpu="rtx-4090")',
        )
    found = Recipe(**keys) if recipe is None else recipe.replace(**keys) if keys else recipe
    if gpu is not None:
        found = found.replace(gpu=gpu)
    return found, limit_of(found.gpu, budget_bytes)


def _pinned(recipe: Recipe, keep: Collection[str]) -> Recipe:
    """The recipe with kept keys said, so that no other change moves their defaults."""
    values = resolve(recipe).values
    said = recipe.said()
    for key in keep:
        if key in said or key not in values or key in _NOT_PINNED:
            continue
        try:
            pinned = recipe.replace(**{key: values[key]})
            if resolve(pinned).values == values:
                recipe = pinned
        except InputError:
            continue
    return recipe
