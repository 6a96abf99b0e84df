"""The search against brute force: every combination of the stated space estimated in full, without screens and shortcuts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import pytest

from memplan import engine
from memplan.errors import MemplanError
from memplan.estimate import Estimate, Fits
from memplan.planner import Change, Plan, Proposal, Tier, plan
from memplan.planner.changes import legal_changes
from memplan.planner.limit import Limit, limit_of
from memplan.planner.proposals import merged
from memplan.recipe import Recipe
from memplan.resolve import resolve
from tests.planner.recipes import REAL
from tests.planner.small import CASES, budget


@dataclass(frozen=True)
class Tried:
    """One combination with its full estimate."""

    changes: tuple[Change, ...]
    estimate: Estimate

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(change.id for change in self.changes)

    @property
    def tier(self) -> int:
        return max((int(change.tier) for change in self.changes), default=1)


def every_combination(recipe: Recipe, most: int) -> list[tuple[Change, ...]]:
    """All combinations of at most `most` legal changes, one a knob."""
    changes, _ = legal_changes(resolve(recipe))
    knobs: dict[str, list[Change]] = {}
    for change in changes:
        knobs.setdefault(change.knob, []).append(change)
    found: list[tuple[Change, ...]] = [()]
    for size in range(1, most + 1):
        for names in combinations(knobs, size):
            found += product(*(knobs[name] for name in names))
    return found


def tried(recipe: Recipe, combos: list[tuple[Change, ...]]) -> list[Tried]:
    found = []
    for changes in combos:
        try:
            found.append(Tried(changes, engine.estimate(recipe.replace(**merged(changes, recipe)))))
        except MemplanError:
            continue
    return found


@cache
def everything(name: str, most: int) -> tuple[Tried, ...]:
    recipe = Recipe(**CASES[name][0])
    return tuple(tried(recipe, every_combination(recipe, most)))


def fitting(found: tuple[Tried, ...], limit: Limit) -> list[Tried]:
    return [one for one in found if one.changes and limit.verdict(one.estimate).fits is Fits.FITS]


def pain(one: Proposal | Tried) -> tuple[int, int, int, list[Tier]]:
    """What the order promises: tier, how far the training moves, number of changes, their tiers."""
    tiers = sorted((change.tier for change in one.changes), reverse=True)
    return (one.tier, sum(change.pain for change in one.changes), len(one.changes), tiers)


def check(found: Plan, space: tuple[Tried, ...], limit: Limit) -> None:
    """Hold a plan's solutions to all combinations."""
    fits = fitting(space, limit)
    if found.current.fits is Fits.FITS:
        assert found.smallest is None
        assert found.cheapest is None
        return
    if not fits:
        assert found.smallest is None
        assert found.cheapest is None
        return
    assert found.smallest is not None
    assert found.cheapest is not None
    fewest = min(len(one.changes) for one in fits)
    assert pain(found.cheapest) == min(pain(one) for one in fits)
    assert pain(found.smallest) == min(pain(one) for one in fits if len(one.changes) == fewest)
    for chosen in (found.smallest, found.cheapest):
        assert {change.id for change in chosen.changes} in [set(one.names) for one in fits]


# The other recipes and combinations of three take minutes.
IN_CI = ("LoRA", "eager", "accumulated")


@pytest.mark.parametrize(("name", "gib"), [(name, gib) for name in IN_CI for gib in CASES[name][1]])
def test_no_smaller_and_no_cheaper_combination_is_missed(name: str, gib: float) -> None:
    limit = limit_of(None, budget(gib))
    found = plan(Recipe(**CASES[name][0]), budget_bytes=budget(gib), max_changes=2)
    check(found, everything(name, 2), limit)


@pytest.mark.full_matrix
@pytest.mark.parametrize(("name", "gib"), [(name, gib) for name, (_, budgets) in CASES.items() for gib in budgets])
def test_nor_among_combinations_of_three(name: str, gib: float) -> None:
    limit = limit_of(None, budget(gib))
    found = plan(Recipe(**CASES[name][0]), budget_bytes=budget(gib), max_changes=3)
    check(found, everything(name, 3), limit)


@pytest.mark.parametrize("name", IN_CI)
def test_budgets_divide_the_space(name: str) -> None:
    """The test above would prove little if everything fitted, or nothing."""
    _, budgets = CASES[name]
    counts = [len(fitting(everything(name, 2), limit_of(None, budget(gib)))) for gib in budgets]
    assert len(set(counts)) == len(budgets)
    assert max(counts) > 10 * max(min(counts), 1)


@pytest.mark.parametrize(
    "name", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.full_matrix) for name in CASES]
)
def test_nothing_in_the_front_is_beaten_and_all_else_is(name: str) -> None:
    keys, budgets = CASES[name]
    recipe = Recipe(**keys)
    found = plan(recipe, budget_bytes=budget(budgets[1]), max_changes=2)
    space = [one for one in everything(name, 2) if one.tier < Tier.DIFFERENT_TRAINING or len(one.changes) == 1]
    front = [(one.tier, round(one.compute.ratio, 3), one.peak.device_bytes) for one in found.pareto if one.compute]
    assert front
    assert len(front) == len(found.pareto)
    for point in front:
        assert not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in front)
    for one in space:
        if one.estimate.timeline:
            point = (one.tier, _ratio(recipe, one), one.estimate.peak.device_bytes)
            assert any(all(a <= b for a, b in zip(other, point, strict=True)) for other in front), one.names


def _ratio(recipe: Recipe, one: Tried) -> float:
    from memplan.planner.flops import flop_model
    from memplan.prepare import prepare

    def per_token(recipe: Recipe) -> float:
        resolved = resolve(recipe)
        model = flop_model(resolved, prepare(resolved))
        assert model is not None
        batch, length = resolved["micro_batch_size"], resolved["sequence_length"]
        return model.count(batch, length).total / (batch * length)

    return round(per_token(recipe.replace(**merged(one.changes, recipe))) / per_token(recipe), 3)


QUICK = ("Llama-3.2-1B, full, RTX 4090", "Llama-3.1-8B, full, H100")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full_matrix) for name in REAL]
)
def test_no_single_change_is_missed_on_a_real_recipe(name: str) -> None:
    """Each single change estimated in full: where one fits, the plan's solution is the cheapest of those."""
    keys = REAL[name]
    recipe = Recipe(**keys)
    limit = limit_of(recipe.gpu, None)
    changes, _ = legal_changes(resolve(recipe))
    fits = fitting(tuple(tried(recipe, [(change,) for change in changes])), limit)
    found = plan(recipe, max_changes=2)
    assert found.current.fits is Fits.DOES_NOT_FIT
    assert found.smallest is not None
    assert found.smallest.fits is Fits.FITS
    shown = {one.changes[0].id for one in found.singles if one.fits is Fits.FITS}
    assert shown <= {one.names[0] for one in fits}
    if not fits:
        assert len(found.smallest.changes) == 2
        return
    assert len(found.smallest.changes) == 1
    assert pain(found.smallest) == min(pain(one) for one in fits)
    for one in fits:  # of a ladder the mildest that fits stands for the stronger ones
        (change,) = one.changes
        milder = [
            other
            for other in found.singles
            if other.fits is Fits.FITS
            and (other.changes[0].knob, other.tier) == (change.knob, change.tier)
            and other.changes[0].strength <= change.strength
        ]
        assert milder, change.id
