"""How candidates are scored: a cheap exact bound that rules out, and the full estimate that decides.

    structure(recipe)            a recipe up to its batch and sequence
    structure.best(batch, ...)   the best verdict that it could have, from its exact live peak
    judge(recipe)                the full estimate

The live peak is what the walk gives, exact to the byte; the allocator can only add to it. So a candidate whose live peak
alone does not fit is ruled out without replaying the allocator, and no solution is lost. A step is recorded once a structure
and answers for every batch and sequence, so that scoring one of them takes microseconds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from memplan import engine
from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Estimate, Fits
from memplan.planner.flops import FlopModel, flop_model
from memplan.planner.limit import Limit
from memplan.prepare import Prepared, prepare
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve
from memplan.training_step import RecordedStep, recorded_step, settings_of
from memplan.unsupported import Unsupported, unsupported_parts


class Structure:
    """A legal recipe up to its batch and sequence.

    Attributes:
        recipe, resolved, prepared: with the batch and sequence that it was first met with.
        limit: what verdicts are against.
    """

    def __init__(self, recipe: Recipe, resolved: Resolved, prepared: Prepared, limit: Limit) -> None:
        self.recipe = recipe
        self.resolved = resolved
        self.prepared = prepared
        self.limit = limit
        self._settings = settings_of(resolved, prepared)
        self._steps: list[RecordedStep] = []

    @cached_property
    def unsupported(self) -> Unsupported:
        """What no rule covers."""
        return unsupported_parts(self.resolved, self.prepared)

    @cached_property
    def flops(self) -> FlopModel | None:
        """The operations of its step; None where there is no rule."""
        return flop_model(self.resolved, self.prepared)

    @cached_property
    def states_bytes(self) -> int:
        """What is alive at the least when the optimizer has stepped: weights, gradients, states."""
        state = self.prepared.state
        return sum(state.loaded.values()) + state.gradients_bytes + state.master_bytes + state.states.device_bytes

    @cached_property
    def _best_of_states(self) -> Fits:
        return self.limit.best_case(self.states_bytes)

    def best(self, batch: int, sequence: int) -> Fits:
        """The best verdict that the structure can have with a batch and a sequence.

        Model states are looked at first: most of what does not fit does not even hold its weights and states.
        """
        best = self._best_of_states
        if best is not Fits.DOES_NOT_FIT and not self.unsupported.step:
            best = self.limit.best_case(self.live_bytes(batch, sequence))
        return Fits.UNCERTAIN if best is Fits.FITS and self.unsupported.texts else best

    def live_bytes(self, batch: int, sequence: int) -> int:
        """The exact live peak; only where the step is covered."""
        settings = replace(self._settings, batch=batch, sequence=sequence)
        for step in self._steps:
            sizes = step.sizes(settings)
            if sizes is not None:
                return step.walker.peak_bytes(sizes)
        resolved = resolve(self.recipe.replace(micro_batch_size=batch, sequence_length=sequence))
        step, sizes = recorded_step(resolved, self.prepared)
        self._steps.append(step)
        return step.walker.peak_bytes(sizes)


class Scorer:
    """Scores recipes against one limit.

    Attributes:
        limit: what they must stay within.
        judged: how many recipes got a full estimate.
    """

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._structures: dict[str, Structure | None] = {}
        self._estimates: dict[str, Estimate] = {}

    @property
    def judged(self) -> int:
        """How many recipes got a full estimate."""
        return len(self._estimates)

    def structure(self, recipe: Recipe) -> Structure | None:
        """The structure of a recipe; None where its keys contradict each other or its method has no rule at all."""
        key = _key(recipe)
        if key not in self._structures:
            try:
                resolved = resolve(recipe)
                found = Structure(recipe, resolved, prepare(resolved), self.limit)
            except (InputError, UnsupportedError):
                found = None
            self._structures[key] = found
        return self._structures[key]

    def judge(self, recipe: Recipe) -> Estimate:
        """The full estimate, once a recipe.

        Raises:
            InputError, UnsupportedError: as `memplan.estimate`.
        """
        key = _key(recipe)
        if key not in self._estimates:
            self._estimates[key] = engine.estimate(recipe)
        return self._estimates[key]


def _key(recipe: Recipe) -> str:
    return recipe.model_dump_json(exclude_none=True)
