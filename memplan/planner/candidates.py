"""The space that is searched: every combination of legal changes, at most one a knob, with what is known before judging.

Changes of batch, sequence and allocator leave a recipe's structure as it is (up to whether gradients are accumulated), so
that a step is recorded once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import inf

from memplan.estimate import Component, Fits
from memplan.planner.proposals import Proposer
from memplan.planner.result import Change, Tier
from memplan.planner.scoring import Structure

Cost = tuple[object, ...]

# Knobs that leave alone what is alive in a structure, up to its numbers; knobs that decide how base weights are stored.
_NUMBERS = frozenset({"batch", "sequence"})
_OUTSIDE = _NUMBERS | {"allocator"}
_STORAGE = frozenset({"method", "precision"})
# The walk plays a micro-batch that finds no gradients and one that does.
_DISTINCT_MICRO_STEPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A legal combination.

    Attributes:
        changes: at most one a knob.
        structure: its recipe up to batch and sequence.
        batch, sequence: of a micro-batch.
        ratio: operations a token over those of the recipe as given; 1 where that has no rule.
    """

    changes: tuple[Change, ...]
    structure: Structure
    batch: int
    sequence: int
    ratio: float

    @property
    def tier(self) -> Tier:
        """Of the dearest change."""
        return max((change.tier for change in self.changes), default=Tier.SAME_RESULT)

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of its changes."""
        return tuple(change.id for change in self.changes)

    @property
    def cost(self) -> Cost:
        """What decides between combinations of one tier, pain and size.

        Their tiers; extra compute; places on all ladders; names. Less compute than the recipe as given is no merit: a shorter
        sequence would be the better the shorter it is.
        """
        tiers = sorted((change.tier for change in self.changes), reverse=True)
        strengths = sum(change.strength for change in self.changes)
        return (tiers, max(self.ratio, 1.0), strengths, self.ratio, self.names)

    def best(self) -> Fits:
        """The best verdict that it can have."""
        return self.structure.best(self.batch, self.sequence)

    def live_bytes(self) -> int:
        """A lower bound of its live peak: the exact one where the step is covered."""
        if self.structure.unsupported.step:
            return self.structure.states_bytes
        return self.structure.live_bytes(self.batch, self.sequence)


class CandidateSpace:
    """All combinations of changes to one recipe.

    Args:
        proposer: knows the recipe.
        changes: every legal single change.
        max_changes: how many changes a combination may have.

    Attributes:
        knobs: the changes by knob, in order.
    """

    def __init__(self, proposer: Proposer, changes: Sequence[Change], max_changes: int) -> None:
        self.proposer = proposer
        self.max_changes = max_changes
        self.knobs: dict[str, list[Change]] = {}
        for change in changes:
            self.knobs.setdefault(change.knob, []).append(change)
        self._structures: dict[object, Structure | None] = {}
        self._stored: dict[tuple[str, ...], bool] = {}

    def count(self, most: Tier = Tier.HARDWARE) -> int:
        """How many combinations of two or more changes of at most a tier the space holds, legal or not."""
        ways = [1]
        for options in self.knobs.values():
            able = sum(change.tier <= most for change in options)
            shifted = [0, *(number * able for number in ways)]
            ways = [stay + turn for stay, turn in zip([*ways, 0], shifted, strict=True)]
        return sum(ways[2 : self.max_changes + 1])

    def combinations(self, size: int, tier: Tier) -> Iterator[tuple[Change, ...]]:
        """Every combination of exactly `size` changes whose dearest change is of exactly `tier`."""
        for names in combinations(self.knobs, size):
            options = [[change for change in self.knobs[name] if change.tier <= tier] for name in names]
            for changes in product(*options):
                if max(change.tier for change in changes) == tier:
                    yield changes

    def candidates(self, combos: Iterable[tuple[Change, ...]], *, holding: bool = True) -> list[Candidate]:
        """The legal ones among combinations.

        Args:
            combos: what to look at.
            holding: leave out what cannot even hold its base weights.
        """
        found = []
        for changes in combos:
            if holding and not self._holds_weights(changes):
                continue
            candidate = self.candidate(changes)
            if candidate is not None:
                found.append(candidate)
        return found

    def candidate(self, changes: tuple[Change, ...]) -> Candidate | None:
        """One combination; None where its keys contradict each other or what must stay."""
        numbers = {key: value for change in changes if change.knob in _NUMBERS for key, value in change.sets.items()}
        values = self.proposer.base.resolved.values
        steps = numbers.get("gradient_accumulation_steps", values["gradient_accumulation_steps"])
        rest = tuple(change.id for change in changes if change.knob not in _OUTSIDE)
        key = (rest, min(steps, _DISTINCT_MICRO_STEPS))
        if key not in self._structures:
            self._structures[key] = self.proposer.structure(changes)
        structure = self._structures[key]
        if structure is None:
            return None
        batch = numbers.get("micro_batch_size", self.proposer.batch)
        sequence = numbers.get("sequence_length", self.proposer.sequence)
        ratio = self.proposer.ratio(structure, batch, sequence)
        if ratio is None:
            ratio = 1.0 if self.proposer.base.flops is None else inf
        return Candidate(changes, structure, batch, sequence, ratio)

    def _holds_weights(self, changes: tuple[Change, ...]) -> bool:
        """Whether the limit holds the base weights as the changes store them; nothing else of a change matters to that."""
        storing = tuple(change for change in changes if change.knob in _STORAGE)
        key = tuple(change.id for change in storing)
        if key not in self._stored:
            structure = self.proposer.structure(storing)
            held = 0
            if structure is not None:
                loaded = structure.prepared.state.loaded
                held = loaded.get(Component.WEIGHTS, 0) + loaded.get(Component.QUANTIZATION_STATE, 0)
            limit = self.proposer.scorer.limit
            self._stored[key] = structure is None or limit.best_case(held) is not Fits.DOES_NOT_FIT
        return self._stored[key]
