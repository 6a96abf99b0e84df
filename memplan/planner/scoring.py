"""How candidates are scored: a cheap bound that rules out, and the full estimate that decides.

    screen(recipe)   the best verdict that the recipe could have, from its exact live peak
    judge(recipe)    the full estimate and its verdict

The live peak is what the walk gives, exact to the byte; the allocator can only add to it. So a candidate whose live peak
alone does not fit is ruled out without replaying the allocator, and no solution is lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from memplan import engine
from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Component, Estimate, Fits
from memplan.planner.limit import Limit
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve

_CACHED_ESTIMATES = 512
_estimates: OrderedDict[str, Estimate] = OrderedDict()


class Scorer:
    """Scores recipes against one limit.

    Attributes:
        limit: what they must stay within.
        judged: how many full estimates were asked for.
    """

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.judged = 0
        self._resolved: dict[str, Resolved | None] = {}

    def resolved(self, recipe: Recipe) -> Resolved | None:
        """The complete recipe; None where its keys contradict each other or its method has no rule at all."""
        key = _key(recipe)
        if key not in self._resolved:
            try:
                found = resolve(recipe)
                engine.prepare(found)
            except (InputError, UnsupportedError):
                found = None
            self._resolved[key] = found
        return self._resolved[key]

    def screen(self, recipe: Recipe) -> Fits:
        """The best verdict that a legal recipe can have.

        Model states are looked at first: most of what does not fit does not even hold its weights and states.
        """
        resolved = self.resolved(recipe)
        if resolved is None:
            return Fits.DOES_NOT_FIT
        prepared = engine.prepare(resolved)
        unsupported = engine.unsupported_parts(resolved, prepared)
        best = self.limit.best_case(states_bytes(prepared))
        if best is not Fits.DOES_NOT_FIT and not unsupported.step:
            best = self.limit.best_case(live_bytes(resolved, prepared))
        return Fits.UNCERTAIN if unsupported.texts and best is Fits.FITS else best

    def judge(self, recipe: Recipe) -> Estimate:
        """The full estimate; cached across plans.

        Raises:
            InputError, UnsupportedError: as `memplan.estimate`.
        """
        self.judged += 1
        key = _key(recipe)
        known = _estimates.get(key)
        if known is None:
            known = _estimates[key] = engine.estimate(recipe)
            if len(_estimates) > _CACHED_ESTIMATES:
                _estimates.popitem(last=False)
        else:
            _estimates.move_to_end(key)
        return known


def states_bytes(prepared: engine.Prepared) -> int:
    """What is alive at the least when the optimizer has stepped: weights, gradients, states."""
    state = prepared.state
    loaded: Mapping[Component, int] = state.loaded
    return sum(loaded.values()) + state.gradients_bytes + state.master_bytes + state.states.device_bytes


def live_bytes(resolved: Resolved, prepared: engine.Prepared) -> int:
    """The exact live peak of a step that the walk covers."""
    return engine.walk(resolved, prepared)[1].peak.peak_bytes


def _key(recipe: Recipe) -> str:
    return recipe.model_dump_json(exclude_none=True)
