"""From changes to proposals: merge what they set, estimate in full, and say what differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from memplan import engine
from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Estimate
from memplan.planner.flops import FlopModel, flop_model
from memplan.planner.result import Change, Compute, Proposal, Tier
from memplan.planner.scoring import Scorer
from memplan.recipe import Recipe
from memplan.resolve import Resolved

# Keys of the complete recipe that name no setting of the run.
_NOT_IMPLIED = frozenset({"peft"})


class Proposer:
    """Makes proposals out of changes to one recipe.

    Attributes:
        recipe: as given, with the kept keys said out loud.
        scorer: judges.
        fixed: recipe keys that may not change, not even by a default.
        base: the complete recipe.
    """

    def __init__(self, recipe: Recipe, scorer: Scorer, base: Resolved, fixed: Collection[str]) -> None:
        self.recipe = recipe
        self.scorer = scorer
        self.base = base
        self.fixed = frozenset(fixed)
        self._base_estimate: Estimate | None = None
        self._flops_per_token = _per_token(_model(base), base)

    def changed(self, changes: Iterable[Change]) -> Recipe | None:
        """The recipe with changes; None where they contradict it, each other, or what must stay."""
        sets = merged(changes, self.recipe)
        try:
            recipe = self.recipe.replace(**sets)
        except InputError:
            return None
        resolved = self.scorer.resolved(recipe)
        if resolved is None:
            return None
        if self.fixed and any(key in self.fixed for key in implied(self.base.values, resolved.values, sets)):
            return None
        return recipe

    def propose(self, changes: Sequence[Change]) -> Proposal | None:
        """The full estimate of the recipe with changes; None where there is no such recipe."""
        recipe = self.changed(changes)
        if recipe is None:
            return None
        try:
            estimate = self.scorer.judge(recipe)
        except (InputError, UnsupportedError):
            return None
        if self._base_estimate is None:
            self._base_estimate = self.scorer.judge(self.recipe)
        resolved = self.scorer.resolved(recipe)
        assert resolved is not None
        sets = merged(changes, self.recipe)
        return Proposal(
            changes=tuple(sorted(changes, key=lambda change: (change.tier, change.knob))),
            tier=max((change.tier for change in changes), default=Tier.SAME_RESULT),
            sets=sets,
            implies=implied(self._base_estimate.recipe, estimate.recipe, sets),
            recipe=_plain(recipe.said()),
            peak=estimate.peak,
            saves_bytes=_saving(self._base_estimate, estimate),
            host_bytes=estimate.host_bytes,
            compute=self.compute(resolved),
            verdict=self.scorer.limit.verdict(estimate),
            unsupported=estimate.unsupported,
        )

    def ratio(self, recipe: Recipe) -> float:
        """Operations a token over the given recipe's; 1 where there is no rule."""
        resolved = self.scorer.resolved(recipe)
        compute = self.compute(resolved) if resolved is not None else None
        return compute.ratio if compute is not None else 1.0

    def compute(self, resolved: Resolved) -> Compute | None:
        """Operations of a step and a token, and their ratio to the given recipe's."""
        model = _model(resolved)
        per_token = _per_token(model, resolved)
        if model is None or per_token is None or not self._flops_per_token:
            return None
        batch, length = resolved["micro_batch_size"], resolved["sequence_length"]
        steps = resolved["gradient_accumulation_steps"]
        return Compute(
            flops_per_step=model.count(batch, length).total * steps,
            flops_per_token=per_token,
            ratio=round(per_token / self._flops_per_token, 6),
        )


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


def implied(before: Any, after: Any, sets: Collection[str]) -> dict[str, tuple[Any, Any]]:
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


def _model(resolved: Resolved) -> FlopModel | None:
    return flop_model(resolved, engine.prepare(resolved))


def _per_token(model: FlopModel | None, resolved: Resolved) -> float | None:
    if model is None:
        return None
    batch, length = resolved["micro_batch_size"], resolved["sequence_length"]
    return float(model.count(batch, length).total / (batch * length))


def _plain(value: Any) -> Any:
    """As JSON holds it: enums as text, tuples as lists."""
    return json.loads(json.dumps(value, default=list))
