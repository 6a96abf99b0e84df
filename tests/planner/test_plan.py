"""What a plan promises whatever the recipe: every figure is a full estimate, kept keys stay, tiers mean what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memplan
from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.estimate import Fits
from memplan.planner import Plan, Proposal, Tier, plan
from memplan.planner.limit import limit_of
from memplan.recipe import Recipe
from memplan.units import GIB
from tests.planner.small import CASES, EAGER, FULL, LORA, QLORA, WIDE, budget


def every_proposal(found: Plan) -> list[Proposal]:
    """All that a plan shows."""
    solutions = [one for one in (found.smallest, found.cheapest) if one is not None]
    return [found.current, *found.singles, *solutions, *found.uncertain, *found.pareto]


@pytest.mark.parametrize("name", CASES)
def test_every_proposal_is_the_full_estimate_of_its_recipe(name: str) -> None:
    keys, budgets = CASES[name]
    found = plan(**keys, budget_bytes=budget(budgets[2]), max_changes=2)
    limit = limit_of(None, budget(budgets[2]))
    base = memplan.estimate(**keys)
    for one in every_proposal(found):
        estimate = memplan.estimate(Recipe(**one.recipe))
        assert one.peak == estimate.peak
        assert one.verdict == limit.verdict(estimate)
        assert one.unsupported == estimate.unsupported
        assert one.host_bytes == estimate.host_bytes
        if one.saves_bytes is not None:
            assert one.saves_bytes == base.peak.device_bytes - estimate.peak.device_bytes
        assert (one.saves_bytes is None) == (not estimate.timeline)
        for key, value in one.sets.items():
            assert one.recipe.get(key) == value


@pytest.mark.parametrize("name", CASES)
def test_what_is_implied_and_set_is_all_that_differs(name: str) -> None:
    keys, budgets = CASES[name]
    found = plan(**keys, budget_bytes=budget(budgets[2]), max_changes=2)
    before = json.loads(json.dumps(found.recipe, default=list))
    for one in every_proposal(found):
        after = json.loads(json.dumps(memplan.estimate(Recipe(**one.recipe)).recipe, default=list))
        differing = {key for key in {*before, *after} if before.get(key) != after.get(key)} - {"peft"}
        assert differing - set(one.sets) == set(one.implies)
        for key, (old, new) in one.implies.items():
            assert (old, new) == (before.get(key), after.get(key))


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_deterministic(name: str) -> None:
    keys, budgets = CASES[name]
    first, second = (plan(**keys, budget_bytes=budget(budgets[2]), max_changes=2) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_json_reads_back() -> None:
    found = plan(**FULL, budget_bytes=5 * GIB, largest=["batch"], lengths=[10, 20])
    again = Plan.model_validate_json(found.to_json())
    assert again == found
    assert json.loads(found.to_json())["smallest"]["sets"] == found.smallest.sets if found.smallest else False


@pytest.mark.parametrize("name", CASES)
def test_tiers_are_ordered_and_what_is_uncertain_is_no_solution(name: str) -> None:
    keys, budgets = CASES[name]
    for gib in budgets[:4]:
        found = plan(**keys, budget_bytes=budget(gib), max_changes=2)
        tiers = [one.tier for one in found.singles]
        assert tiers == sorted(tiers)
        for one in every_proposal(found):
            assert one.tier == max((change.tier for change in one.changes), default=Tier.SAME_RESULT)
            assert not (one.unsupported and one.fits is Fits.FITS)
        for solution in (found.smallest, found.cheapest):
            assert solution is None or solution.fits is Fits.FITS
        assert all(one.fits is Fits.UNCERTAIN for one in found.uncertain)


def test_same_result_means_the_same_effective_batch_and_training() -> None:
    found = plan(**{**LORA, "gradient_accumulation_steps": 3}, budget_bytes=4 * GIB)
    kept = {"method", "sequence_length", "dtype", "precision", "peft", "load_in_4bit"}
    for one in every_proposal(found):
        if one.tier < Tier.DIFFERENT_TRAINING:
            after = memplan.estimate(Recipe(**one.recipe)).recipe
            assert after["micro_batch_size"] * after["gradient_accumulation_steps"] == 24
            assert {key: after.get(key) for key in kept} == {key: found.recipe.get(key) for key in kept}


KEEPABLE = (
    "micro_batch_size", "gradient_accumulation_steps", "sequence_length", "optim", "activation_checkpointing", "method",
    "load_in_4bit", "loss", "expandable_segments", "attn_implementation", "precision", "dtype", "lora_r",
)  # fmt: skip


@settings(max_examples=6, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    keep=st.sets(st.sampled_from(KEEPABLE), max_size=5),
    keys=st.sampled_from([FULL, LORA, QLORA, EAGER]),
    gib=st.sampled_from([3.0, 4.5, 8.0]),
)
def test_what_is_kept_stays(keep: set[str], keys: dict[str, Any], gib: float) -> None:
    found = plan(**keys, budget_bytes=budget(gib), keep=sorted(keep), max_changes=2)
    for one in every_proposal(found):
        assert not keep & set(one.sets)
        after = memplan.estimate(Recipe(**one.recipe)).recipe
        for key in keep - {"lora_r"}:
            assert after.get(key) == found.recipe.get(key), (key, one.title)


def test_keeping_holds_against_the_defaults_of_other_changes() -> None:
    """A 4-bit base turns checkpointing on by default; kept off, it stays off."""
    found = plan(**FULL, budget_bytes=3 * GIB, keep=["activation_checkpointing"])
    (qlora,) = [one for one in found.singles if one.changes[0].id == "qlora"]
    assert memplan.estimate(Recipe(**qlora.recipe)).recipe["activation_checkpointing"] is False


def test_only_what_is_allowed_changes() -> None:
    found = plan(**FULL, budget_bytes=budget(4.2), allow=["micro_batch_size", "gradient_accumulation_steps"])
    assert set(found.space.changes) == {"batch"}
    assert found.smallest is not None
    assert set(found.smallest.sets) == {"micro_batch_size", "gradient_accumulation_steps"}
    assert any(entry.reason == "kept as the user asked" for entry in found.space.skipped)


def test_without_accumulation_a_smaller_batch_is_another_training() -> None:
    found = plan(**FULL, budget_bytes=4 * GIB, keep=["gradient_accumulation_steps"])
    assert all(change.startswith("batch-") for change in found.space.changes["batch"])


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_dearer_changes_are_left_out(tier: int) -> None:
    found = plan(**FULL, budget_bytes=3 * GIB, highest_tier=tier)
    assert all(one.tier <= tier for one in every_proposal(found))
    assert found.gpus == ()


def test_what_fits_needs_no_change() -> None:
    found = plan(**FULL, budget_bytes=20 * GIB)
    assert found.current.fits is Fits.FITS
    assert found.smallest is None
    assert found.fits is Fits.FITS
    assert found.gpus == ()


def test_what_is_not_covered_is_listed_and_never_a_solution() -> None:
    found = plan(**FULL, budget_bytes=4 * GIB)
    uncovered = [one for one in found.singles if one.unsupported]
    assert all(one.fits is not Fits.FITS for one in uncovered)
    gpt2 = plan(model="gpt2", loss="fused_linear", gpu="rtx-4090", max_changes=2)
    assert gpt2.current.fits is not Fits.FITS
    assert gpt2.smallest is None or not gpt2.smallest.unsupported


def test_a_budget_on_a_gpu_uses_the_gpus_kernels() -> None:
    found = plan(**FULL, gpu="t4", budget_bytes=8 * GIB)
    assert found.usable_bytes == 8 * GIB
    assert found.gpu == "t4"
    assert found.current.peak == memplan.estimate(**FULL, gpu="t4").peak


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, InputError, "limit"),
        ({"gpu": "rtx-4091"}, UnknownNameError, "rtx-4090"),
        ({"budget_bytes": 24}, InvalidValueError, "64"),
        ({"budget_bytes": True}, InvalidValueError, "budget_bytes"),
        ({"gpu": "t4", "budget_bytes": 80 * GIB}, InvalidValueError, "T4"),
        ({"gpu": "t4", "keep": ["micro_batch"]}, UnknownNameError, "micro_batch_size"),
        ({"gpu": "t4", "keep": "optim"}, InvalidValueError, "list"),
        ({"gpu": "t4", "keep": ["optim"], "allow": ["optim"]}, InputError, "both"),
        ({"gpu": "t4", "max_changes": 0}, InvalidValueError, "1 to 4"),
        ({"gpu": "t4", "max_changes": 99}, InvalidValueError, "1 to 4"),
        ({"gpu": "t4", "highest_tier": 5}, InvalidValueError, "hardware"),
        ({"gpu": "t4", "largest": "batch"}, InvalidValueError, "list"),
        ({"gpu": "t4", "largest": ["bacth"]}, UnknownNameError, "batch"),
        ({"gpu": "t4", "largest": ["rank"]}, InvalidValueError, "rank"),
        ({"gpu": "t4", "prices": {"t5": 1.0}}, UnknownNameError, "t4"),
        ({"gpu": "t4", "prices": {"t4": -1.0}}, InvalidValueError, "above 0"),
        ({"gpu": "t4", "lengths": []}, InvalidValueError, "length"),
        ({"gpu": "t4", "lengths": [0]}, InvalidValueError, "length"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        plan(model=WIDE, **options)
    assert text in str(caught.value)


def test_the_package_exports_it() -> None:
    assert memplan.plan(Recipe(**FULL), budget_bytes=20 * GIB).fits is Fits.FITS
    with pytest.raises(InputError, match="a Recipe was expected"):
        memplan.plan({"model": "gpt2"}, gpu="t4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "keys",
    [
        {"stack": "unsloth", "method": "qlora", "gpu": "rtx-3090"},
        {"stack": "torchtune", "method": "lora", "gpu": "l4"},
        {"optim": "lomo", "gpu": "l4"},
        {"attn_implementation": "flash_attention_2", "packing": True, "gpu": "l4"},
        {"method": "lora", "activation_offloading": "checkpoints", "activation_checkpointing": True, "gpu": "l4"},
    ],
    ids=str,
)
def test_bounds_are_found_for_every_way_of_running(keys: dict[str, Any]) -> None:
    """The search asks for one token, too, where a recipe of one token may be refused."""
    found = plan(Recipe(model=WIDE, micro_batch_size=2, sequence_length=512, **keys), largest=("sequence", "batch"))
    for one in found.largest:
        assert isinstance(one.value, int)
        assert one.value > 1
        assert one.verdict is not None
        assert one.verdict.fits is Fits.FITS
