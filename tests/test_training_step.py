"""A step recorded for one batch answers for another exactly as if it had been recorded for that one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan import engine, training_step
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve
from memplan.step import native
from memplan.step.walk import Walk
from memplan.training_step import recorded_step, settings_of, walk
from tests.step.small_runs import LLAMA, RECIPES

NUMBERS = st.tuples(st.integers(1, 6), st.integers(1, 300))


def facts(walk: Walk) -> list[tuple[Any, ...]]:
    return [
        (phase.peak_bytes, phase.end_bytes, str(phase.at), dict(phase.components), +phase.storages)  # type: ignore[operator]
        for phase in walk.phases
    ]


def heights(walk: Walk) -> list[tuple[int, int]]:
    return [(phase.peak_bytes, phase.end_bytes) for phase in walk.phases]


def changed(recipe: Recipe, batch: int, sequence: int) -> Resolved:
    return resolve(recipe.replace(micro_batch_size=batch, sequence_length=sequence))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(RECIPES, NUMBERS, NUMBERS)
def test_another_batch_is_as_if_recorded_for_it(recipe: Recipe, here: tuple[int, int], there: tuple[int, int]) -> None:
    mine, theirs = changed(recipe, *here), changed(recipe, *there)
    found = prepare(mine)
    assert prepare(theirs) is found
    found.steps.clear()
    recorded_step(mine, found)
    step, sizes = recorded_step(theirs, found)
    fresh = walk(theirs, found)[1]
    again = step.walker.run(sizes)
    assert heights(again) == heights(fresh)
    assert facts(again) == facts(fresh)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(RECIPES, NUMBERS)
def test_the_allocator_is_told_of_the_other_batch(recipe: Recipe, there: tuple[int, int]) -> None:
    theirs = changed(recipe, *there)
    found = prepare(theirs)
    found.steps.clear()
    step, sizes = recorded_step(theirs, found)
    fresh = training_step.replay(theirs, found, step, sizes)
    found.steps.clear()
    recorded_step(resolve(recipe), found)
    step, sizes = recorded_step(theirs, found)
    assert training_step.replay(theirs, found, step, sizes) == fresh


def test_a_step_is_recorded_once() -> None:
    recipe = Recipe(model=LLAMA, micro_batch_size=2, sequence_length=64)
    found = prepare(resolve(recipe))
    found.steps.clear()
    for batch in range(2, 9):
        for sequence in (32, 100, 4096):
            recorded_step(changed(recipe, batch, sequence), found)
    assert sum(map(len, found.steps.values())) == 1


def test_what_was_compared_decides_whether_it_holds() -> None:
    # Efficient attention under a mask pads it where the length is no multiple of 8: another course.
    recipe = Recipe(model=LLAMA, micro_batch_size=2, sequence_length=64, padding=True)
    found = prepare(resolve(recipe))
    found.steps.clear()
    first, _ = recorded_step(changed(recipe, 2, 64), found)
    assert first.sizes(settings_of(changed(recipe, 2, 72), found)) is not None
    assert first.sizes(settings_of(changed(recipe, 2, 65), found)) is None
    second, _ = recorded_step(changed(recipe, 2, 65), found)
    assert second is not first


def test_another_course_is_another_recording() -> None:
    recipe = Recipe(model=LLAMA, micro_batch_size=2, sequence_length=64)
    found = prepare(resolve(recipe))
    plain, _ = recorded_step(resolve(recipe), found)
    for keys in ({"activation_checkpointing": True}, {"attn_implementation": "eager"}, {"max_grad_norm": 0.0}):
        other = resolve(recipe.replace(**keys))
        assert prepare(other) is found
        assert recorded_step(other, found)[0] is not plain


@pytest.mark.parametrize("keys", [{}, {"method": "qlora"}, {"gradient_accumulation_steps": 5}])
def test_an_estimate_is_the_same_with_and_without_the_library(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(model=LLAMA, micro_batch_size=2, sequence_length=64, gpu="t4", **keys)
    with_library = engine.estimate(recipe)
    monkeypatch.setattr(native, "library", lambda: None)
    assert engine.estimate(recipe) == with_library


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"method": "qlora", "target_modules": ["q_proj"], "task": "token-classification"},
            "an adapter for token classification on quantized weights",
        ),
        ({"method": "bitfit", "task": "sequence-classification"}, "bitfit under a classification head"),
        (
            {"model": "google-bert/bert-base-uncased", "method": "qlora", "task": "sequence-classification"},
            "an adapter for sequence classification on quantized weights",
        ),
        (
            {"model": "google-bert/bert-base-uncased", "method": "lora", "load_in_8bit": True},
            "the step of bert on weights in 8 bits",
        ),
        (
            {
                "model": {"model_type": "t5", "vocab_size": 5003, "dropout_rate": 0.0},
                "dtype": "bfloat16",
                "precision": "pure",
            },
            "the position bias of t5 under cuDNN's attention kernel",
        ),
    ],
)
def test_what_no_trace_confirms_never_fits(keys: dict[str, Any], said: str) -> None:
    found = engine.estimate(
        Recipe(**{"model": "Qwen/Qwen2.5-0.5B", "micro_batch_size": 1, "sequence_length": 64, "gpu": "h200", **keys})
    )
    assert any(text.startswith(said) for text in found.unsupported)
    assert found.verdict().fits == "uncertain"
