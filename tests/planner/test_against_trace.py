"""Plans hold according to the trace: what they call too large is, and what they call fitting fits."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import MemplanError
from memplan.estimate import Estimate, Fits
from memplan.planner import Plan, plan
from memplan.planner.limit import limit_of
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace import run_many
from memplan.trace.estimate import spec_of, to_estimate
from tests.planner.small import WIDE, budget

TWO_LAYERS = {**WIDE, "num_hidden_layers": 2}
FULL = {"model": TWO_LAYERS, "micro_batch_size": 8, "sequence_length": 1024}
LORA = {**FULL, "method": "lora", "lora_r": 8, "target_modules": "all-linear", "lora_dropout": 0.05}
# Recipe, budget, and the knobs that must be turned at that budget.
CASES: dict[str, tuple[dict[str, Any], float, set[str]]] = {
    "full": (FULL, 3.6, {"batch", "optimizer"}),
    "LoRA": (LORA, 3.3, {"batch", "sequence"}),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[Plan, Estimate, Estimate]]:
    """For each case the plan, and the traces of the recipe as given and as planned."""
    plans = {
        name: plan(
            **keys, budget_bytes=budget(gib), max_changes=2, keep=("loss",)
        )  # whose kernels need another package
        for name, (keys, gib, _) in CASES.items()
    }
    recipes = []
    for found in plans.values():
        assert found.smallest is not None
        recipes += [found.current.recipe, found.smallest.recipe]
    resolved = [resolve(Recipe(**recipe)) for recipe in recipes]
    estimates = []
    for one, result in zip(resolved, run_many([spec_of(one) for one in resolved], timeout_s=300), strict=True):
        assert not isinstance(result, MemplanError), result
        estimates.append(to_estimate(result, one, expandable_segments=one["expandable_segments"]))
    pairs = zip(estimates[::2], estimates[1::2], strict=True)
    return {name: (found, *pair) for (name, found), pair in zip(plans.items(), pairs, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_trace_says_what_the_plan_says(answers: dict[str, tuple[Plan, Estimate, Estimate]], name: str) -> None:
    found, before, after = answers[name]
    limit = limit_of(None, budget(CASES[name][1]))
    assert found.smallest is not None
    assert {change.knob for change in found.smallest.changes} == CASES[name][2]
    assert found.current.fits is Fits.DOES_NOT_FIT
    assert limit.verdict(before).fits is Fits.DOES_NOT_FIT
    assert limit.verdict(after).fits is Fits.FITS
    assert found.current.peak.live_bytes == before.peak.live_bytes
    assert found.smallest.peak.live_bytes == after.peak.live_bytes
