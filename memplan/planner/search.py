"""The search: single changes, the smallest and the cheapest sufficient combination, the front of memory against compute.

The space: every combination of at most `max_changes` legal changes, one a knob. Candidates are ordered by what they cost the
user, then judged in that order; a candidate is passed over only if its screen (an exact lower bound) rules it out. So the
first that fits is the cheapest that fits, and no order of evaluation can change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from memplan.estimate import Fits
from memplan.planner.proposals import Proposer
from memplan.planner.result import Change, Proposal, Tier
from memplan.recipe import Recipe

Cost = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A legal combination with what is known of it before it is judged."""

    changes: tuple[Change, ...]
    recipe: Recipe
    ratio: float

    @property
    def tier(self) -> Tier:
        """Of the dearest change."""
        return max(change.tier for change in self.changes)

    @property
    def mildness(self) -> Cost:
        """What decides between combinations of one tier and size: tiers, compute, places on the ladders, names."""
        tiers = sorted((change.tier for change in self.changes), reverse=True)
        strengths = sum(change.strength for change in self.changes)
        return (tiers, self.ratio, strengths, [change.id for change in self.changes])


def by_size(candidate: Candidate) -> Cost:
    """Fewest changes first."""
    return (len(candidate.changes), candidate.tier, *candidate.mildness)


def by_tier(candidate: Candidate) -> Cost:
    """Lowest tier first."""
    return (candidate.tier, len(candidate.changes), *candidate.mildness)


class Search:
    """Searches combinations of changes to one recipe.

    Args:
        proposer: makes and judges proposals.
        changes: every legal single change.
        max_changes: how many changes a combination may have.
    """

    def __init__(self, proposer: Proposer, changes: Sequence[Change], max_changes: int) -> None:
        self.proposer = proposer
        self.max_changes = max_changes
        self.knobs: dict[str, list[Change]] = {}
        for change in changes:
            self.knobs.setdefault(change.knob, []).append(change)
        self._screens: dict[tuple[str, ...], Fits] = {}
        self._proposals: dict[tuple[str, ...], Proposal | None] = {}

    # -- candidates -------------------------------------------------------------------------------------

    def combinations(self, size: int, tier: Tier) -> Iterator[tuple[Change, ...]]:
        """Every combination of exactly `size` changes whose dearest change is of exactly `tier`."""
        for names in combinations(self.knobs, size):
            options = [[change for change in self.knobs[name] if change.tier <= tier] for name in names]
            for changes in product(*options):
                if max(change.tier for change in changes) == tier:
                    yield changes

    def count(self) -> int:
        """How many combinations of two or more changes the space holds."""
        polynomial = [1]
        for options in self.knobs.values():
            longer = [*polynomial, 0]
            for degree, ways in enumerate(polynomial):
                longer[degree + 1] += ways * len(options)
            polynomial = longer
        return sum(polynomial[2 : self.max_changes + 1])

    def candidates(self, combos: Iterable[tuple[Change, ...]]) -> list[Candidate]:
        """The legal ones, with their compute; where that has no rule, the ratio is that of the recipe as given."""
        found = []
        for changes in combos:
            recipe = self.proposer.changed(changes)
            if recipe is not None:
                found.append(Candidate(changes, recipe, self.proposer.ratio(recipe)))
        return found

    def screen(self, candidate: Candidate) -> Fits:
        """The best verdict that a candidate can have."""
        key = _names(candidate.changes)
        if key not in self._screens:
            self._screens[key] = self.proposer.scorer.screen(candidate.recipe)
        return self._screens[key]

    def propose(self, changes: tuple[Change, ...]) -> Proposal | None:
        """The full estimate, once."""
        key = _names(changes)
        if key not in self._proposals:
            self._proposals[key] = self.proposer.propose(changes)
        return self._proposals[key]

    # -- answers ----------------------------------------------------------------------------------------

    def singles(self) -> list[Proposal]:
        """For each knob and tier the mildest change that fits, or the strongest where none does, cheapest first."""
        found: list[tuple[Cost, Proposal]] = []
        for options in self.knobs.values():
            for ladder in _ladders(options):
                rungs = self.candidates((change,) for change in ladder)
                might = next((rung for rung in rungs if self.screen(rung) is not Fits.DOES_NOT_FIT), None)
                if might:
                    self.propose(might.changes)
                chosen = next((rung for rung in rungs if self._fits(rung)), rungs[-1] if rungs else None)
                proposal = self.propose(chosen.changes) if chosen else None
                if chosen and proposal:
                    found.append((by_tier(chosen), proposal))
        return [proposal for _, proposal in sorted(found, key=lambda entry: entry[0])]

    def smallest(self) -> Proposal | None:
        """The fewest changes that fit; None where nothing in the space does."""
        return self._first(
            (size, tier) for size in range(1, self.max_changes + 1) for tier in Tier if tier < Tier.HARDWARE
        )

    def cheapest(self) -> Proposal | None:
        """The lowest tier that fits, with the fewest changes; None where nothing in the space does."""
        return self._first(
            (size, tier) for tier in Tier if tier < Tier.HARDWARE for size in range(1, self.max_changes + 1)
        )

    def uncertain(self) -> list[Proposal]:
        """Everything that was judged and might fit, cheapest first; no solution among it."""
        might = [one for one in self._proposals.values() if one is not None and one.fits is Fits.UNCERTAIN]
        return sorted(might, key=lambda one: (one.tier, len(one.changes), [change.id for change in one.changes]))

    def _first(self, buckets: Iterable[tuple[int, Tier]]) -> Proposal | None:
        """The cheapest that fits of the first bucket in which something does: (number of changes, tier)."""
        for size, tier in buckets:
            for candidate in sorted(self.candidates(self.combinations(size, tier)), key=lambda one: one.mildness):
                if self._fits(candidate):
                    return self.propose(candidate.changes)
        return None

    def _fits(self, candidate: Candidate) -> bool:
        if self.screen(candidate) is not Fits.FITS:
            return False
        proposal = self.propose(candidate.changes)
        return proposal is not None and proposal.fits is Fits.FITS


def _ladders(options: Sequence[Change]) -> list[list[Change]]:
    """A knob's changes by tier where they are steps of one quantity, each on its own where they are not."""
    ladders: dict[object, list[Change]] = {}
    for change in options:
        is_step = change.knob in ("batch", "sequence", "rank")
        ladders.setdefault((change.tier, "" if is_step else change.id), []).append(change)
    return list(ladders.values())


def _names(changes: Iterable[Change]) -> tuple[str, ...]:
    return tuple(change.id for change in changes)
