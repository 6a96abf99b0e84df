"""Generation between two steps: walk against trace, how the cache grows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.errors import InputError, InvalidValueError
from memplan.estimate import Component, Phase
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step import generation
from tests.methods.agreement import GPT2, LLAMA, QWEN2, Agreement, recipe

GENERATES: dict[str, Any] = {"max_new_tokens": 5, "max_prompt_length": 61, "per_device_eval_batch_size": 3}
EAGER = {"attn_implementation": "eager"}
# The cache outgrows everything else: one short prompt for many rows.
SHORT = {"max_new_tokens": 8, "max_prompt_length": 3, "per_device_eval_batch_size": 17}
LONG = {**SHORT, "max_new_tokens": 70}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 4096}
PHI3 = {**LLAMA, "model_type": "phi3", "sliding_window": 512}
QV = {"method": "lora", "peft": {"target_modules": ["q_proj", "v_proj"]}}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 200,
}
CASES: dict[str, dict[str, Any]] = {
    name: {**GENERATES, **keys}
    for name, keys in {
        "full, bf16": {},
        "full, bf16, rows": SHORT,
        "full, amp": {"precision": "amp"},
        "full, amp, rows": {"precision": "amp", **SHORT},
        "full, fp32, eager": {"precision": "fp32", **EAGER},
        "lora, checkpointed": {"method": "lora", "activation_checkpointing": True},
        "lora, amp, rows, eager": {"method": "lora", "precision": "amp", **SHORT, **EAGER},
        "qlora": {"method": "qlora", "load_in_4bit": True},
        "qlora, one row": {"method": "qlora", "load_in_4bit": True, **SHORT, "per_device_eval_batch_size": 1},
        "one token": {"max_new_tokens": 1},
        "one token of many rows, short": {
            "max_new_tokens": 1,
            "max_prompt_length": 3,
            "per_device_eval_batch_size": 600,
        },
        "qwen2, evaluated as well": {"model": QWEN2, "eval_strategy": "steps"},
        "gemma2 with windows": {"model": GEMMA2, **EAGER},
        "phi3 with a window": {"model": PHI3},
        "gpt2": {"model": GPT2},
        "mixtral": {"model": MIXTRAL},
        "mixtral, lora, rows": {"model": MIXTRAL, **QV, **SHORT},
        "qwen3_moe, amp": {"model": QWEN3_MOE, "precision": "amp"},
    }.items()
}
COMMON = Agreement(
    {
        name: CASES[name]
        for name in (
            "full, bf16",
            "full, amp, rows",
            "lora, amp, rows, eager",
            "qlora, one row",
            "one token of many rows, short",
            "gpt2",
            "mixtral",
        )
    }
)
EVERY = Agreement(CASES)
# More tokens than are executed one by one.
JUMPING = Agreement({name: {**keys, "max_new_tokens": 70, "expandable_segments": True} for name, keys in CASES.items()})


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)
    assert [phase.phase for phase in COMMON.compared[name].phases].count("generation") == 2


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace_in_every_case_and_over_many_tokens(name: str) -> None:
    EVERY.check(name)
    JUMPING.check(name)


def peak_of(**keys: Any) -> int:
    points = memplan.estimate(recipe(**{**GENERATES, **keys})).timeline
    return max(point.peak_bytes for point in points if point.phase is Phase.GENERATION)


def test_each_token_costs_at_least_its_keys_and_values() -> None:
    rows, kv_heads, head, layers = 64, 2, 64, 2
    one, two = (peak_of(max_prompt_length=8, per_device_eval_batch_size=rows, max_new_tokens=n) for n in (400, 401))
    assert two - one >= 2 * layers * rows * kv_heads * head * 2


def test_each_row_gets_copies_of_its_experts_after_the_prompt() -> None:
    one, many = (peak_of(model=MIXTRAL, max_prompt_length=3, per_device_eval_batch_size=rows) for rows in (1, 33))
    gate_up_and_down = 2 * (2 * 1000 * 384 + 1000 * 384) * 2  # of two experts, in 16 bits
    assert many - one >= 32 * gate_up_and_down


def test_jumping_over_tokens_changes_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    every = peak_of(**{**LONG, "max_new_tokens": 60})
    from memplan.prepare import _prepare

    _prepare.cache_clear()
    monkeypatch.setattr(generation, "EXECUTED_TOKENS", 3)
    assert peak_of(**{**LONG, "max_new_tokens": 60}) == every
    _prepare.cache_clear()


def test_generation_can_be_the_peak_and_names_its_cache() -> None:
    found = memplan.estimate(recipe(**{**GENERATES, **LONG, "per_device_eval_batch_size": 2048}, method="lora"))
    assert found.peak.phase is Phase.GENERATION
    assert found.component_bytes(Component.KV_CACHE) > 0.2 * found.peak.live_bytes
    assert any(line.component is Component.KV_CACHE and "T" in line.formula for line in found.lines)
    assert sum(line.bytes for line in found.lines) == found.peak.live_bytes


def test_growth_beyond_what_is_played_never_fits_but_for_expandable_segments() -> None:
    keys = {**GENERATES, "max_new_tokens": 200, "gpu": "h200"}
    assert memplan.estimate(recipe(**GENERATES, gpu="h200")).verdict().fits
    assert not memplan.estimate(recipe(**keys)).verdict().fits
    assert memplan.estimate(recipe(**keys, expandable_segments=True)).verdict().fits


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model": {**GPT2, "model_type": "gptj", "rotary_dim": 64}}, "by gptj models"),
        ({"padding": True}, "padded prompts"),
        ({"packing": True}, "with packing=True"),
        ({"stack": "trl"}, "with stack=trl"),
        ({"loss": "chunked"}, "with loss=chunked"),
        ({"model": {**LLAMA, "model_type": "mistral", "sliding_window": 32}}, "beyond the window of 32 tokens"),
        ({"attn_implementation": "flash_attention_2", "gpu": "h100"}, "flash_attention_2"),
        ({"method": "prompt_tuning", "num_virtual_tokens": 8}, "under prompt_tuning"),
    ],
)
def test_what_is_not_walked_is_said(keys: dict[str, Any], text: str) -> None:
    found = memplan.estimate(recipe(**{**GENERATES, **keys}))
    assert any(text in entry for entry in found.unsupported)


def test_a_prompt_with_what_follows_must_fit_the_positions() -> None:
    with pytest.raises(InvalidValueError, match="max_prompt_length"):
        resolve(Recipe(model="gpt2", max_new_tokens=100, max_prompt_length=1000))
    assert resolve(Recipe(model="gpt2", max_new_tokens=100)).values["max_prompt_length"] == 924
    with pytest.raises(InputError, match="nothing in this recipe uses it"):
        memplan.estimate(recipe(max_prompt_length=100))
