"""One micro-step on a tape: what enters it, what it leaves, and what folding leaves out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from memplan import training_step
from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.builder import Builder
from memplan.step.recording import Recording, record
from memplan.step.settings import StepSettings
from memplan.step.site import Site, SiteParameter
from memplan.step.tensor import Segment, Tensor
from memplan.training_step import walk
from tests.step.small_runs import RECIPES, prepared, recorded

SITES = {"head": Site((SiteParameter("weight", DType.FLOAT32, True),))}


def forward(tape: Builder) -> Tensor:
    """Twice the only parameter, summed up to a loss by name."""
    weight = tape.parameter("head", "weight", (300,))
    loss = weight * weight
    tape.outputs.append(loss)
    return loss


def alive(recording: Recording) -> Counter[int]:
    """How many of each storage backward leaves."""
    left: Counter[int] = Counter()
    for segment in played(recording):
        for event in segment.events:
            left[event if event >= 0 else ~event] += segment.count if event >= 0 else -segment.count
    return +left


def played(recording: Recording) -> list[Segment]:
    """Forward and backward: what follows them is freed whenever the tape itself is collected."""
    return [segment for segment in recording.segments if segment.phase != Phase.OPTIMIZER_STEP]


def names(recording: Recording) -> list[str]:
    return [info.op for info in recording.infos]


def test_the_batch_comes_first_and_leaves_last() -> None:
    recording = record(forward, SITES, StepSettings(batch=2, sequence=65))
    assert names(recording)[:2] == ["input_ids", "labels"]
    assert [info.size_bytes for info in recording.infos[:2]] == [1536, 1536]
    assert all(info.component is Component.BUFFERS for info in recording.infos[:2])
    last = recording.segments[-1]
    assert last.phase == Phase.OPTIMIZER_STEP
    assert {~0, ~1} <= set(last.events)


def test_padding_brings_a_mask() -> None:
    recording = record(forward, SITES, StepSettings(batch=2, sequence=65, padding=True))
    assert names(recording)[:3] == ["input_ids", "labels", "attention_mask"]


def test_the_loss_is_named_and_backward_leaves_the_gradient() -> None:
    recording = record(forward, SITES, StepSettings(batch=1, sequence=8))
    (loss,) = recording.named
    assert recording.infos[loss].op == "mul"
    left = [recording.infos[index] for index in alive(recording) if index not in recording.named]
    batch, gradient = left[:2], left[2]
    assert [(info.op, info.component) for info in batch] == [
        ("input_ids", Component.BUFFERS),
        ("labels", Component.BUFFERS),
    ]
    assert (gradient.component, gradient.module, gradient.shape) == (Component.GRADIENTS, "head.weight", (300,))
    assert len(left) == 3
    assert recording.workspaces == frozenset()
    assert recording.ports == ()


def test_the_gradient_of_the_loss_is_part_of_it() -> None:
    recording = record(forward, SITES, StepSettings(batch=1, sequence=8))
    ones = next(info for info in recording.infos if info.op == "ones_like")
    assert (ones.component, ones.size_bytes, ones.in_backward) == (Component.LOGITS_AND_LOSS, 512, True)


def test_kept_outputs_are_named() -> None:
    without = recorded(*prepared())
    with_outputs = recorded(*prepared(keep_outputs=True))
    assert len(without.named) == 1
    kept = [with_outputs.infos[index] for index in with_outputs.named - without.named]
    assert any(info.shape[-1] == 131 for info in kept)  # the logits


@settings(derandomize=True, deadline=None, max_examples=40)
@given(RECIPES)
def test_a_step_leaves_one_gradient_for_each_trained_parameter(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    recording = recorded(resolved, found, fold=False)
    left = alive(recording)
    infos = [recording.infos[index] for index in left if index not in recording.workspaces | recording.named]
    assert {info.component for info in infos} == {Component.GRADIENTS, Component.BUFFERS}
    gradients = [info for info in infos if info.component is Component.GRADIENTS]
    trained = sorted(entry.shape for entry in found.state.stored if entry.trainable)
    assert sorted(tuple(map(int, info.shape)) for info in gradients) == trained


@settings(derandomize=True, deadline=None, max_examples=40)
@given(RECIPES)
def test_a_folded_recording_allocates_what_every_layer_allocates(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    folded = recorded(resolved, found, fold=True)
    executed = recorded(resolved, found, fold=False)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert allocations(folded, phase) == allocations(executed, phase)
    assert len(folded.infos) <= len(executed.infos)


def allocations(recording: Recording, phase: Phase) -> Counter[tuple[str, int, Component]]:
    """How many storages of each op, size and component a phase allocates."""
    found: Counter[tuple[str, int, Component]] = Counter()
    for segment in recording.segments:
        if segment.phase == phase:
            for event in segment.events:
                if event >= 0:
                    info = recording.infos[event]
                    found[info.op, info.size_bytes, info.component] += segment.count
    return found


def test_recording_twice_is_the_same() -> None:
    first, second = (training_step.walk(*prepared(method="lora"))[0][0] for _ in range(2))
    assert [segment.events for segment in played(first)] == [segment.events for segment in played(second)]
    assert [(info.op, info.size_bytes, info.module) for info in first.infos] == [
        (info.op, info.size_bytes, info.module) for info in second.infos
    ]


@pytest.mark.parametrize("targets", [("o_proj",), ("down_proj",)], ids=str)
def test_what_all_layers_share_is_freed_once(targets: tuple[str, ...]) -> None:
    # The first layer's queries need no gradient: the last to have saved the rotary embedding is one of the equal layers.
    model = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 97,
             "num_attention_heads": 2}  # fmt: skip
    resolved = resolve(Recipe(model=model, method="lora", target_modules=targets, sequence_length=64))
    prepared = prepare(resolved)
    folded, single = (
        [(phase.peak_bytes, phase.end_bytes) for phase in walk(resolved, prepared, fold=fold)[1].phases]
        for fold in (True, False)
    )
    assert folded == single
