"""What a plan must stay within, and that the screen never rules out what fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memplan
from memplan.catalog.cuda_context import UNNAMED_GPU_CONTEXT_BYTES
from memplan.estimate import Fits
from memplan.planner.limit import limit_of
from memplan.planner.scoring import Scorer
from memplan.recipe import Recipe
from memplan.units import GIB
from tests.planner.small import EAGER, FULL, LORA, QLORA, budget

ORDER = {Fits.DOES_NOT_FIT: 0, Fits.UNCERTAIN: 1, Fits.FITS: 2}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    keys=st.sampled_from([FULL, LORA, QLORA, EAGER]),
    batch=st.integers(1, 12),
    sequence=st.integers(1, 1500),
    gib=st.floats(2.4, 12),
)
def test_no_verdict_is_better_than_its_screen(keys: dict, batch: int, sequence: int, gib: float) -> None:  # type: ignore[type-arg]
    limit = limit_of(None, budget(gib))
    recipe = Recipe(**{**keys, "micro_batch_size": batch, "sequence_length": sequence})
    structure = Scorer(limit).structure(Recipe(**keys))
    assert structure is not None
    estimate = memplan.estimate(recipe)
    assert structure.live_bytes(batch, sequence) == estimate.peak.live_bytes
    assert structure.states_bytes <= estimate.peak.live_bytes
    assert ORDER[limit.verdict(estimate).fits] <= ORDER[structure.best(batch, sequence)]


def test_a_gpus_verdict_is_that_of_the_estimate() -> None:
    estimate = memplan.estimate(**FULL, gpu="rtx-4090")
    assert limit_of("RTX 4090", None).verdict(estimate) == estimate.verdict()


def test_a_budget_counts_the_context_of_an_unnamed_gpu() -> None:
    limit = limit_of(None, 8 * GIB)
    estimate = memplan.estimate(**FULL)
    verdict = limit.verdict(estimate)
    assert limit.context_bytes == UNNAMED_GPU_CONTEXT_BYTES
    assert (verdict.gpu, verdict.usable_bytes) == ("budget", 8 * GIB)
    assert verdict.expected_bytes == estimate.peak.device_bytes


@pytest.mark.parametrize("less", [0, 1, 4 * GIB])
def test_a_budget_on_a_gpu_only_lowers_what_is_usable(less: int) -> None:
    whole = limit_of("rtx-4090", None)
    part = limit_of("rtx-4090", whole.usable_bytes - less)
    estimate = memplan.estimate(**FULL, gpu="rtx-4090")
    assert part.verdict(estimate).expected_bytes == whole.verdict(estimate).expected_bytes
    assert part.verdict(estimate).headroom_bytes == whole.verdict(estimate).headroom_bytes - less


def test_a_budget_on_a_gpu_has_the_gpus_margin() -> None:
    """A lower limit changes what is usable, not what is measured on the card."""
    for keys in (FULL, LORA, QLORA):
        estimate = memplan.estimate(**keys, gpu="h100")
        whole = limit_of("h100", None)
        part = limit_of("h100", whole.usable_bytes - GIB)
        assert part.verdict(estimate).upper_bytes == whole.verdict(estimate).upper_bytes
        assert part.verdict(estimate).margin == whole.verdict(estimate).margin
