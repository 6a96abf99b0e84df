"""The search: single changes, the least painful and the smallest combination that fits, the front of memory against compute.

Candidates are ordered by what they cost the user and judged in that order; one is passed over only if its screen (an exact
lower bound) rules it out. So the first that fits is the least painful that fits, and no order of evaluation can change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from memplan.estimate import Fits
from memplan.planner.candidates import Candidate, CandidateSpace, Cost
from memplan.planner.result import Change, Proposal, Tier

TIERS = (Tier.SAME_RESULT, Tier.SLOWER, Tier.DIFFERENT_TRAINING)
# Knobs whose changes are steps of one quantity.
LADDERS = frozenset({"batch", "sequence", "rank"})


class Search:
    """Searches a space of candidates.

    Args:
        space: all combinations of changes to one recipe.
    """

    def __init__(self, space: CandidateSpace) -> None:
        self.space = space
        self._proposals: dict[tuple[str, ...], Proposal | None] = {}

    def propose(self, changes: tuple[Change, ...]) -> Proposal | None:
        """The full estimate, once."""
        key = tuple(change.id for change in changes)
        if key not in self._proposals:
            self._proposals[key] = self.space.proposer.propose(changes)
        return self._proposals[key]

    # -- what fits --------------------------------------------------------------------------------------

    def singles(self) -> list[Proposal]:
        """For each knob and tier the mildest change that fits, or the strongest where none does, cheapest first.

        The mildest that might fit is judged too, so that `uncertain` has it.
        """
        found: list[tuple[Cost, Proposal]] = []
        for options in self.space.knobs.values():
            for ladder in ladders(options):
                rungs = self.space.candidates(((change,) for change in ladder), holding=False)
                might = next((rung for rung in rungs if len(rungs) == 1 or rung.best() is not Fits.DOES_NOT_FIT), None)
                if might:
                    self.propose(might.changes)
                chosen = next((rung for rung in rungs if self.fits(rung)), rungs[-1] if rungs else None)
                proposal = self.propose(chosen.changes) if chosen else None
                if chosen and proposal:
                    found.append(((chosen.tier, proposal.pain, *chosen.cost), proposal))
        return [proposal for _, proposal in sorted(found, key=lambda entry: entry[0])]

    def cheapest(self) -> Proposal | None:
        """The least painful that fits: of the lowest tier, what moves the training least, by the fewest changes."""
        sizes = range(1, self.space.max_changes + 1)
        for tier in TIERS:
            found = self._first(changes for size in sizes for changes in self.space.combinations(size, tier))
            if found is not None:
                return found
        return None

    def smallest(self, cheapest: Proposal) -> Proposal:
        """The fewest changes that fit, of those the least painful.

        Args:
            cheapest: the least painful of all, which of its own size is therefore the least painful.
        """
        for size in range(1, len(cheapest.changes)):
            for tier in TIERS:
                found = self._first(self.space.combinations(size, tier))
                if found is not None:
                    return found
        return cheapest

    def uncertain(self) -> list[Proposal]:
        """Everything that was judged and might fit, cheapest first; no solution among it."""
        might = [one for one in self._proposals.values() if one and one.changes and one.fits is Fits.UNCERTAIN]
        return sorted(
            might, key=lambda one: (one.tier, one.pain, len(one.changes), [change.id for change in one.changes])
        )

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate fits, by its full estimate unless its screen rules it out."""
        if candidate.names not in self._proposals and candidate.best() is not Fits.FITS:
            return False
        proposal = self.propose(candidate.changes)
        return proposal is not None and proposal.fits is Fits.FITS

    def _first(self, combinations: Iterable[tuple[Change, ...]]) -> Proposal | None:
        """The first that fits of combinations of one tier: by pain, number of changes and cost."""
        alike: dict[tuple[int, int], list[tuple[Change, ...]]] = {}
        for changes in combinations:
            alike.setdefault((sum(change.pain for change in changes), len(changes)), []).append(changes)
        for _, group in sorted(alike.items(), key=lambda entry: entry[0]):
            for candidate in sorted(self.space.candidates(group), key=lambda one: one.cost):
                if self.fits(candidate):
                    return self.propose(candidate.changes)
        return None

    # -- memory against compute -------------------------------------------------------------------------

    def front(self) -> list[Proposal]:
        """Proposals of `front_space` that no other beats in memory, compute and tier together, cheapest first.

        A thousandth of compute is no difference. Of several that are equal in all three the one with the fewest changes
        stands for all.
        """
        context = self.space.proposer.scorer.limit.context_bytes
        candidates = self.space.candidates(self.front_space(), holding=False)
        covered = [one for one in candidates if not one.structure.unsupported.step]
        bounds = {one: one.live_bytes() + context for one in covered}
        kept: list[Proposal] = []
        ordered = sorted(
            covered, key=lambda one: (one.tier, rounded(one.ratio), bounds[one], len(one.changes), one.cost)
        )
        for candidate in ordered:
            if any(beats(one, candidate.tier, rounded(candidate.ratio), bounds[candidate]) for one in kept):
                continue
            proposal = self.propose(candidate.changes)
            if proposal is None or any(_beats(one, proposal) for one in kept):
                continue
            kept = [one for one in kept if not _beats(proposal, one)] + [proposal]
        return sorted(kept, key=lambda one: (one.tier, _ratio(one), -one.peak.device_bytes))

    def front_space(self) -> Iterator[tuple[Change, ...]]:
        """The recipe as given, every combination that leaves the training as it is, and every single change."""
        yield ()
        for size in range(1, self.space.max_changes + 1):
            for tier in TIERS:
                if tier < Tier.DIFFERENT_TRAINING or size == 1:
                    yield from self.space.combinations(size, tier)


def ladders(options: Sequence[Change]) -> list[list[Change]]:
    """A knob's changes by tier where they are steps of one quantity, each on its own where they are not."""
    found: dict[object, list[Change]] = {}
    for change in options:
        found.setdefault((change.tier, "" if change.knob in LADDERS else change.id), []).append(change)
    return list(found.values())


def beats(one: Proposal, tier: Tier, ratio: float, device_bytes: int) -> bool:
    """Whether a proposal is nowhere worse than a candidate of this tier, compute and (at the least) memory."""
    return one.tier <= tier and _ratio(one) <= ratio and one.peak.device_bytes <= device_bytes


def _beats(one: Proposal, other: Proposal) -> bool:
    return beats(one, other.tier, _ratio(other), other.peak.device_bytes)


def rounded(ratio: float) -> float:
    """Compute as the front compares it."""
    return round(ratio, 3)


def _ratio(proposal: Proposal) -> float:
    return rounded(proposal.compute.ratio) if proposal.compute else 1.0
