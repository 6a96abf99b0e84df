"""The order of changes among each other: several mild ones come before one drastic one."""

from __future__ import annotations

import pytest

from memplan.planner import Tier, pain, plan
from memplan.planner.changes import legal_changes
from memplan.recipe import Recipe
from memplan.resolve import resolve
from tests.planner.small import EAGER, FULL, LORA, QLORA, budget


@pytest.mark.parametrize(("before", "after", "steps"), [(8, 4, 1), (8, 1, 3), (3, 1, 2), (7, 6, 1), (1, 1, 1)])
def test_halvings(before: int, after: int, steps: int) -> None:
    assert pain.halvings(before, after) == steps


@pytest.mark.parametrize("keys", [FULL, LORA, QLORA, EAGER, {**LORA, "gradient_accumulation_steps": 4}])
def test_only_another_training_hurts(keys: dict[str, object]) -> None:
    found, _ = legal_changes(resolve(Recipe(**keys)))
    assert found
    for change in found:
        assert (change.pain > 0) == (change.tier is Tier.DIFFERENT_TRAINING), change.id
    for knob in {change.knob for change in found}:  # further along a ladder hurts more
        ladder = [change.pain for change in found if change.knob == knob and change.tier is Tier.DIFFERENT_TRAINING]
        if knob in ("sequence", "rank"):
            assert ladder == sorted(set(ladder))


def test_the_order_of_the_kinds() -> None:
    lora = {change.id: change.pain for change in legal_changes(resolve(Recipe(**{**LORA, "sequence_length": 2048})))[0]}
    assert lora["adamw-8bit"] < lora["base-4-bit"] < lora["rank-8"] < lora["sequence-1024"]
    assert lora["micro-batch-1"] + lora["base-4-bit"] < lora["sequence-128"]


def test_several_mild_changes_come_before_one_drastic_change() -> None:
    """A batch of one sequence instead of eight does it alone; so do micro-batches of one with states that are paged."""
    found = plan(**FULL, budget_bytes=budget(4.0), keep=("loss", "activation_checkpointing"))
    assert found.cheapest is not None
    assert found.smallest is not None
    assert len(found.smallest.changes) < len(found.cheapest.changes)
    assert (found.cheapest.tier, found.cheapest.pain) < (found.smallest.tier, found.smallest.pain)


def test_what_is_left_out_is_counted() -> None:
    found = plan(**LORA, budget_bytes=budget(4.0), max_changes=2)
    assert 0 < found.space.not_in_front < found.space.combinations
    milder = plan(**LORA, budget_bytes=budget(4.0), max_changes=2, highest_tier=Tier.SLOWER)
    assert milder.space.not_in_front == 0
    assert milder.space.combinations == found.space.combinations - found.space.not_in_front
