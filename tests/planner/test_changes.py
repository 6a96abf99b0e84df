"""Which single changes are legal, what each sets, and what it is said to cost."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import MemplanError
from memplan.optimizers import get_optimizer
from memplan.optimizers.catalog import optimizer_rows
from memplan.planner import Change, Tier
from memplan.planner.changes import KNOBS, legal_changes
from memplan.planner.optimizer_changes import forms
from memplan.planner.proposals import merged
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve
from tests.planner.recipes import REAL
from tests.planner.small import EAGER, FULL, LORA, QLORA


def changes(**keys: Any) -> dict[str, Change]:
    found, _ = legal_changes(resolve(Recipe(**keys)))
    return {change.id: change for change in found}


def after(change: Change, keys: dict[str, Any]) -> Resolved:
    recipe = Recipe(**keys)
    return resolve(recipe.replace(**merged([change], recipe)))


@pytest.mark.parametrize("keys", [FULL, LORA, QLORA, EAGER, *REAL.values()])
def test_every_change_is_legal_and_sets_what_it_says(keys: dict[str, Any]) -> None:
    base = resolve(Recipe(**keys))
    found = changes(**keys)
    for change in found.values():
        resolved = after(change, keys)
        for key, value in change.sets.items():
            if key in resolved.values and value is not None and key != "peft":
                assert str(resolved.values[key]) == str(value)
        assert resolved.values != base.values, f"{change.id} changes nothing"


@pytest.mark.parametrize("keys", [FULL, LORA, QLORA, EAGER])
def test_ladders_go_from_mild_to_strong(keys: dict[str, Any]) -> None:
    found = list(changes(**keys).values())
    for key in ("sequence_length", "micro_batch_size", "lora_r"):
        for knob in ("sequence", "batch", "rank"):
            for tier in Tier:
                ladder = [one for one in found if one.knob == knob and one.tier is tier and key in one.sets]
                values = [one.sets[key] for one in ladder]
                assert values == sorted(values, reverse=True)
                assert [one.strength for one in ladder] == list(range(len(ladder)))
    assert len({one.id for one in found}) == len(found)


@pytest.mark.parametrize(("size", "steps"), [(1, 1), (6, 1), (12, 5), (7, 2)])
def test_accumulation_keeps_the_product(size: int, steps: int) -> None:
    found = changes(**{**FULL, "micro_batch_size": size, "gradient_accumulation_steps": steps})
    kept = [one for one in found.values() if one.knob == "batch" and one.tier is Tier.SAME_RESULT]
    assert {one.sets["micro_batch_size"] for one in kept} == {part for part in range(1, size) if size % part == 0}
    for one in kept:
        assert one.sets["micro_batch_size"] * one.sets["gradient_accumulation_steps"] == size * steps
    assert ("no-accumulation" in found) == (steps > 1)


def test_a_batch_of_many_divisors_is_halved() -> None:
    found = changes(**{**FULL, "micro_batch_size": 55_440})
    parts = [one.sets["micro_batch_size"] for one in found.values() if one.id.startswith("micro-batch-")]
    assert all(55_440 % part == 0 for part in parts)
    assert parts == sorted(parts, reverse=True)
    assert (parts[0], parts[-1]) == (27_720, 1)
    assert len(parts) <= 16


def test_fused_attention_only_where_scores_are_kept_and_the_model_has_it() -> None:
    assert "sdpa" not in changes(**FULL)
    assert changes(**EAGER)["sdpa"].tier is Tier.SAME_RESULT
    assert "sdpa" not in changes(model="google/gemma-2-2b")  # transformers has no sdpa for it
    assert not any("flash" in name for name in changes(**EAGER))


def test_16_bits_only_from_32_and_never_pure_where_a_gpu_has_no_bfloat16() -> None:
    assert not {"mixed-precision", "pure-bfloat16"} & set(changes(**FULL))
    assert {"mixed-precision", "pure-bfloat16"} <= set(changes(**EAGER))
    old = changes(**EAGER, gpu="t4")
    assert "mixed-precision" in old
    assert "pure-bfloat16" not in old


def test_a_quantized_base_is_not_quantized_again() -> None:
    assert not {"base-4-bit", "base-8-bit", "qlora"} & set(changes(**QLORA))
    plain = {**QLORA, "bnb_4bit_use_double_quant": False}
    assert changes(**plain)["double-quantization"].sets == {"bnb_4bit_use_double_quant": True}


def test_a_4_bit_base_keeps_the_targets_of_lora() -> None:
    keys = {**LORA, "target_modules": ["q_proj"], "gpu": "t4", "dtype": "float16"}
    change = changes(**keys)["base-4-bit"]
    resolved = after(change, keys)
    assert resolved.method == "lora"
    assert list(resolved.peft["target_modules"]) == ["q_proj"]
    assert resolved.quantization is not None
    assert change.sets["bnb_4bit_compute_dtype"] == "float16"


def test_a_rank_is_set_where_the_user_has_it() -> None:
    assert changes(**LORA)["rank-8"].sets == {"lora_r": 8}
    assert changes(**QLORA)["rank-16"].sets == {"peft": {"r": 16, "lora_dropout": 0.05}}
    assert not any(name.startswith("rank-") for name in changes(**{**LORA, "lora_r": 4}))
    assert not any(name.startswith("rank-") for name in changes(**FULL))


def test_changes_of_one_adapter_config_are_put_together() -> None:
    found = changes(**QLORA)
    both = merged([found["rank-8"], found["no-lora-dropout"]], Recipe(**QLORA))
    assert both == {"peft": {"r": 8, "lora_dropout": 0.0}}


def test_no_change_of_optimizer_with_options_of_its_own() -> None:
    assert any(one.knob == "optimizer" for one in changes(**FULL).values())
    assert not any(
        one.knob == "optimizer" for one in changes(**FULL, optim="adamw_torch", optim_args={"betas": 1}).values()
    )


def test_float32_states_are_another_training_for_16_bit_weights() -> None:
    assert changes(**FULL)["paged-adamw-32bit"].tier is Tier.DIFFERENT_TRAINING
    assert changes(**LORA)["paged-adamw-32bit"].tier is Tier.SLOWER  # adapters are in float32


def test_the_table_of_optimizers_names_what_exists() -> None:
    rows = optimizer_rows()
    for form in forms():
        assert form.optim in rows
        assert not rows[form.optim].unsupported
        assert form.optim not in form.replaces
        get_optimizer(form.optim)
        for name in form.replaces:
            assert name in rows
        fixed = dict(rows[form.optim].fixed)
        assert (form.tier is Tier.SLOWER) <= bool(fixed.get("paged"))
        assert ("8-bit" in form.title) == (fixed.get("optim_bits") == 8)
        assert ("paged" in form.title) == bool(fixed.get("paged"))


def test_every_knob_says_why_it_has_nothing() -> None:
    tuned = {
        **FULL, "micro_batch_size": 1, "sequence_length": 128, "activation_checkpointing": True, "loss": "chunked",
        "expandable_segments": True, "optim": "sgd", "method": "ln_tuning",
    }  # fmt: skip
    try:
        found, skipped = legal_changes(resolve(Recipe(**tuned)))
    except MemplanError as error:
        pytest.fail(str(error))
    assert {change.knob for change in found} | {entry.knob for entry in skipped} == {knob.name for knob in KNOBS}
    assert all(entry.reason for entry in skipped)
    assert len(skipped) > 8
