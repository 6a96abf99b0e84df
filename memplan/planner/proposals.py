"""From changes to proposals: merge what they set, estimate in full, and say what differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Estimate
from memplan.planner.result import Change, Compute, Proposal, Tier
from memplan.planner.scoring import Scorer, Structure
from memplan.recipe import Recipe

# Keys of the complete recipe that name no setting of the run.
_NOT_IMPLIED = frozenset({"peft"})


class Proposer:
    """Makes proposals out of changes to one recipe.

    Attributes:
        recipe: as given, with the kept keys said out loud.
        scorer: judges.
        kept: recipe keys that may not change, not even by a default.
        base: the structure of the recipe as given.
        estimate: its full estimate.

    Raises:
        InputError, UnsupportedError: the recipe itself cannot be estimated.
    """

    def __init__(self, recipe: Recipe, scorer: Scorer, kept: Collection[str]) -> None:
        self.recipe = recipe
        self.scorer = scorer
        self.kept = frozenset(kept)
        self.estimate = scorer.judge(recipe)
        base = scorer.structure(recipe)
        assert base is not None
        self.base = base
        values = base.resolved.values
        self.batch: int = values["micro_batch_size"]
        self.sequence: int = values["sequence_length"]
        self._flops_per_token = flops_per_token(base, self.batch, self.sequence)

    def structure(self, changes: Iterable[Change]) -> Structure | None:
        """The structure with changes; None where they contradict it, each other, or what must stay."""
        sets = merged(changes, self.recipe)
        try:
            recipe = self.recipe.replace(**sets)
        except InputError:
            return None
        found = self.scorer.structure(recipe)
        if found is None or not self.kept:
            return found
        moved = implied(self.base.resolved.values, found.resolved.values, sets)
        return None if self.kept & moved.keys() else found

    def propose(self, changes: Sequence[Change]) -> Proposal | None:
        """The full estimate of the recipe with changes; None where there is no such recipe."""
        structure = self.structure(changes)
        if structure is None:
            return None
        try:
            estimate = self.scorer.judge(structure.recipe)
        except (InputError, UnsupportedError):
            return None
        sets = merged(changes, self.recipe)
        return Proposal(
            changes=tuple(sorted(changes, key=lambda change: (change.tier, change.knob))),
            tier=max((change.tier for change in changes), default=Tier.SAME_RESULT),
            sets=sets,
            implies=implied(self.estimate.recipe, estimate.recipe, sets),
            recipe=_plain(structure.recipe.said()),
            peak=estimate.peak,
            saves_bytes=_saving(self.estimate, estimate),
            host_bytes=estimate.host_bytes,
            compute=self._compute(structure),
            verdict=self.scorer.limit.verdict(estimate),
            unsupported=estimate.unsupported,
        )

    def ratio(self, structure: Structure, batch: int, sequence: int) -> float | None:
        """Operations a token over the given recipe's; None where either has no rule."""
        per_token = flops_per_token(structure, batch, sequence)
        if per_token is None or not self._flops_per_token:
            return None
        return round(per_token / self._flops_per_token, 6)

    def _compute(self, structure: Structure) -> Compute | None:
        values = structure.resolved.values
        batch, sequence = values["micro_batch_size"], values["sequence_length"]
        ratio = self.ratio(structure, batch, sequence)
        per_token = flops_per_token(structure, batch, sequence)
        if ratio is None or per_token is None:
            return None
        tokens = batch * sequence * values["gradient_accumulation_steps"]
        return Compute(flops_per_step=round(per_token * tokens), flops_per_token=per_token, ratio=ratio)


def flops_per_token(structure: Structure, batch: int, sequence: int) -> float | None:
    """Operations of a micro-batch over its trained positions; None where there is no rule."""
    model = structure.flops
    return None if model is None else model.count(batch, sequence).total / (batch * sequence)


def merged(changes: Iterable[Change], recipe: Recipe) -> dict[str, Any]:
    """All keys that changes to `recipe` set; of its adapter config, what any of them alters."""
    sets: dict[str, Any] = {}
    given = recipe.peft or {}
    for change in changes:
        for key, value in change.sets.items():
            if key == "peft" and isinstance(value, dict):
                altered = {inner: one for inner, one in value.items() if given.get(inner) != one}
                sets[key] = {**sets.get(key, given), **altered}
            else:
                sets[key] = value
    return sets


def implied(before: Mapping[str, Any], after: Mapping[str, Any], sets: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Values of the complete recipe that differ without having been set: what other keys' defaults made of it."""
    keys = [*after, *(key for key in before if key not in after)]
    return {
        key: (_plain(before.get(key)), _plain(after.get(key)))
        for key in keys
        if key not in sets and key not in _NOT_IMPLIED and before.get(key) != after.get(key)
    }


def _saving(before: Estimate, after: Estimate) -> int | None:
    """Marginal saving at the device; None where a step is not covered, so that one side is a lower bound."""
    if not before.timeline or not after.timeline:
        return None
    return before.peak.device_bytes - after.peak.device_bytes


def _plain(value: Any) -> Any:
    """As JSON holds it: enums as text, tuples as lists."""
    return json.loads(json.dumps(value, default=list))
