"""The run for the allocator: a few blocks by hand, and that it is the walk's run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from memplan import training_step
from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.recipe import Recipe
from memplan.step.optimizer_step import OptimizerEvent, clipping_events
from memplan.step.recording import Recording
from memplan.step.replay import play
from memplan.step.run import Run
from memplan.step.tensor import Segment, StorageInfo
from memplan.units import MIB
from tests.step.small_runs import RECIPES, prepared, run_of


def info(index: int, size: int, component: Component, repeats: int = 1) -> StorageInfo:
    return StorageInfo(index, size, component, "op", "", (size,), DType.UINT8, repeats)


def small_run(*events: OptimizerEvent, steps: int = 2) -> Run:
    return Run([(1, 30 * MIB), (2, 12 * MIB), (1, 0)], 2, [RECORDING], (), (), events, steps)


RECORDING = Recording(
    infos=[
        info(0, 10 * MIB, Component.TEMPORARIES),
        info(1, 20 * MIB, Component.ACTIVATIONS),
        info(2, 14 * MIB, Component.GRADIENTS),
        info(3, 0, Component.TEMPORARIES),
    ],
    segments=[
        Segment("", Phase.FORWARD, 1, [0, 1, 3]),
        Segment("", Phase.BACKWARD, 1, [2, ~1, ~3]),
    ],
    named=frozenset(),
    workspaces=frozenset({0}),
    ports=(),
)
STATES = OptimizerEvent("states", True, ((16 * MIB, 2),), Component.OPTIMIZER_STATES, once=True)
BORROWED = (OptimizerEvent("norms", True, ((12 * MIB, 3),)), OptimizerEvent("norms", False, ((12 * MIB, 3),)))


def test_blocks_by_hand() -> None:
    report = play(small_run())
    # Load: 30 and 12, and the 30 are free again. The workspace and the activation fill them; the gradient is new.
    assert report.max_live_bytes == (12 + 10 + 20 + 14) * MIB
    assert report.max_reserved_bytes == (30 + 12 + 14) * MIB


def test_workspaces_and_states_are_made_once() -> None:
    one, two, nine = (play(small_run(STATES, *BORROWED, steps=steps)) for steps in (1, 2, 9))
    assert one.max_live_bytes == (12 + 10 + 14 + 32 + 36) * MIB
    assert two.max_live_bytes == nine.max_live_bytes == one.max_live_bytes
    assert two.max_reserved_bytes == nine.max_reserved_bytes


def test_a_run_of_limited_capacity_dies() -> None:
    needed = play(small_run()).max_reserved_bytes
    assert play(small_run(), capacity_bytes=needed).survived
    died = play(small_run(), capacity_bytes=needed - 1)
    assert not died.survived
    assert died.out_of_memory is not None


@settings(derandomize=True, deadline=None, max_examples=60)
@given(RECIPES)
def test_the_allocator_sees_the_run_that_was_walked(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    peak = training_step.walk(resolved, found)[1].peak.peak_bytes
    folded, executed = (play(run_of(resolved, found, fold=fold)) for fold in (True, False))
    assert folded.max_live_bytes == executed.max_live_bytes == peak
    assert folded.max_reserved_bytes == executed.max_reserved_bytes
    assert folded.max_allocated_bytes == executed.max_allocated_bytes
    assert peak <= executed.max_allocated_bytes <= executed.max_reserved_bytes


@settings(derandomize=True, deadline=None, max_examples=20)
@given(RECIPES)
def test_expandable_segments_allocate_what_is_live(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    report = play(run_of(resolved, found, fold=True), expandable_segments=True)
    assert report.max_allocated_bytes == report.max_live_bytes


def test_no_clipping_without_a_norm() -> None:
    assert clipping_events({DType.FLOAT32: 3}, 0) == []
    assert clipping_events({}, 1.0) == []


@pytest.mark.parametrize("count", [1, 3, 200])
def test_clipping_gives_back_what_it_takes(count: int) -> None:
    events = clipping_events({DType.BFLOAT16: count, DType.FLOAT32: 1}, 1.0)
    assert sum(event.change_bytes for event in events) == 0
    live = peak = 0
    for event in events:
        live += event.change_bytes
        peak = max(peak, live)
    norms = 512 * (count + 1)
    assert peak == norms + 512 * -(-4 * (count + 1) // 512) + 512


def test_a_recording_of_nothing_costs_its_load() -> None:
    empty = Recording([], [], frozenset(), frozenset(), ())
    assert play(Run([(1, MIB)], 1, [empty], (), (), ())).max_live_bytes == MIB
