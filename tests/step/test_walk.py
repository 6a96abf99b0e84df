"""The walk: a recording of three storages by hand, and folded against unfolded layers on random models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from memplan import training_step
from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.tensor import Segment, StorageInfo
from memplan.step.walk import Moment, Resident, Walker
from memplan.units import round_to_block
from tests.step.small_runs import RECIPES, prepared, recorded

KIB = 1024


def info(index: int, kib: int, component: Component, op: str, repeats: int = 1) -> StorageInfo:
    return StorageInfo(index, kib * KIB, component, op, "layers.1", (kib * 256,), DType.FLOAT32, repeats)


# Loss 1, activation 8 in each of three layers, temporary 16, gradient 4 a layer, BLAS workspace 32.
INFOS = [
    info(0, 32, Component.TEMPORARIES, "cuBLAS workspace"),
    info(1, 8, Component.ACTIVATIONS, "mm", repeats=3),
    info(2, 1, Component.LOGITS_AND_LOSS, "nll_loss"),
    info(3, 16, Component.TEMPORARIES, "mul", repeats=3),
    info(4, 4, Component.GRADIENTS, "mm", repeats=3),
    info(5, 2, Component.BUFFERS, "input_ids"),
]
RECORDING = Recording(
    infos=INFOS,
    segments=[
        Segment("", Phase.FORWARD, 1, [5, 0]),
        Segment("layers.1", Phase.FORWARD, 3, [1]),
        Segment("", Phase.FORWARD, 1, [2]),
        Segment("layers.1", Phase.BACKWARD, 3, [3, ~1, 4, ~3]),
        Segment("", Phase.OPTIMIZER_STEP, 1, [~5, ~2]),
    ],
    named=frozenset({2}),
    workspaces=frozenset({0}),
    ports=(),
)
RESIDENT = Resident({Component.WEIGHTS: 100 * KIB}, gradients_bytes=12 * KIB, load_transient_bytes=7 * KIB)
STATES = OptimizerEvent("optimizer states", True, ((8 * KIB, 3),), Component.OPTIMIZER_STATES, once=True)
FOREACH = [
    OptimizerEvent("denom#1", True, ((4 * KIB, 3),)),
    OptimizerEvent("denom#1", False, ((4 * KIB, 3),)),
]
CLIP = [OptimizerEvent("norms", True, ((512, 3),)), OptimizerEvent("norms", False, ((512, 3),))]


def test_two_steps_by_hand() -> None:
    walk = Walker(RECORDING, RESIDENT, clipping=CLIP, optimizer_events=[STATES, *FOREACH]).run()
    kib = [
        (phase.at.step, phase.at.phase.value, phase.peak_bytes / KIB, phase.end_bytes / KIB) for phase in walk.phases
    ]
    assert kib == [
        (0, "load", 107, 100),
        # batch 2, workspace 32, three activations of 8, loss 1
        (1, "forward", 159, 159),
        # the first layer's temporary comes while all activations are there
        (1, "backward", 175, 147),
        # 24 of states, 12 of temporaries; then the gradients go
        (1, "optimizer_step", 183, 159),
        # the old batch went with the step, the old loss goes when the new one has its name
        (2, "forward", 159 + 24 + 1, 159 + 24),
        (2, "backward", 175 + 24, 147 + 24),
        (2, "optimizer_step", 183, 159),
    ]
    assert walk.peak is walk.phases[5]
    # Backward begins at the last of the three layers that layers.1 stands for.
    assert str(walk.peak.at) == "mul in layers.3"


def test_components_at_each_peak_sum_to_it() -> None:
    walk = Walker(RECORDING, RESIDENT, clipping=CLIP, optimizer_events=[STATES, *FOREACH]).run()
    for phase in walk.phases:
        assert sum(phase.components.values()) == phase.peak_bytes
    assert walk.peak.components == {
        Component.WEIGHTS: 100 * KIB,
        Component.OPTIMIZER_STATES: 24 * KIB,
        Component.TEMPORARIES: (32 + 16) * KIB,
        Component.ACTIVATIONS: 24 * KIB,
        Component.LOGITS_AND_LOSS: 1 * KIB,
        Component.BUFFERS: 2 * KIB,
    }
    assert {index: count for index, count in walk.peak.storages.items() if count} == {0: 1, 1: 3, 2: 1, 3: 1, 5: 1}


def test_a_segment_that_grows_has_its_peak_in_its_last_repetition() -> None:
    growing = Recording(
        INFOS,
        [
            Segment("layers.1", Phase.FORWARD, 3, [3, 1, ~3]),
            Segment("layers.1", Phase.BACKWARD, 3, [4, ~1]),
        ],
        frozenset(),
        frozenset(),
        (),
    )
    walk = Walker(growing, RESIDENT, steps=1).run()
    # Two layers' activations, then the third one's beside its temporary.
    assert walk.phases[1].peak_bytes == (100 + 16 + 16 + 8) * KIB
    assert {index: count for index, count in walk.phases[1].storages.items() if count} == {1: 3, 3: 1}


def test_a_walk_without_states_and_temporaries_ends_at_the_weights_and_the_loss() -> None:
    walk = Walker(RECORDING, RESIDENT, steps=1).run()
    assert [phase.at.phase for phase in walk.phases] == [
        Phase.LOAD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP,
    ]  # fmt: skip
    assert walk.phases[-1].end_bytes == (100 + 32 + 2 + 1) * KIB


def test_states_of_the_constructor_belong_to_the_load() -> None:
    walk = Walker(RECORDING, RESIDENT, construction=[STATES]).run()
    assert (walk.phases[0].peak_bytes, walk.phases[0].end_bytes) == (124 * KIB, 124 * KIB)
    assert walk.phases[0].components[Component.OPTIMIZER_STATES] == 24 * KIB
    assert walk.phases[1].peak_bytes == (159 + 24) * KIB


def test_gradients_that_nobody_expects_are_a_bug() -> None:
    resident = Resident({Component.WEIGHTS: 100 * KIB}, gradients_bytes=1, load_transient_bytes=0)
    with pytest.raises(AssertionError, match="12288 bytes of gradients, 1 expected"):
        Walker(RECORDING, resident).run()


def test_moments_in_words() -> None:
    assert str(Moment(1, Phase.BACKWARD, "mm", "lm_head")) == "mm in lm_head"
    assert str(Moment(0, Phase.LOAD, "load", "")) == "load"


def test_the_earlier_of_two_equal_peaks() -> None:
    walk = Walker(RECORDING, RESIDENT, steps=3).run()
    assert walk.peak.at.step == 1  # without states every step is like the first


# -- on models --------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=80)
@given(RECIPES)
def test_folded_layers_are_as_high_as_executed_ones(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    folded = training_step.walk(resolved, found, fold=True)[1]
    executed = training_step.walk(resolved, found, fold=False)[1]
    for mine, theirs in zip(folded.phases, executed.phases, strict=True):
        assert (mine.peak_bytes, mine.end_bytes) == (theirs.peak_bytes, theirs.end_bytes)
        # All results of a run of layers are one storage in the recording, so the last one has the label of the others.
        labels = (Component.ACTIVATIONS, Component.TEMPORARIES)
        held = [{label: phase.components.get(label, 0) for label in labels} for phase in (mine, theirs)]
        assert sum(held[0].values()) == sum(held[1].values())
        assert abs(held[0][Component.ACTIVATIONS] - held[1][Component.ACTIVATIONS]) in (0, _boundary_bytes(recipe))
        rest = [{k: v for k, v in phase.components.items() if k not in labels} for phase in (mine, theirs)]
        assert rest[0] == rest[1]
        assert (mine.at.step, mine.at.phase, mine.at.op) == (theirs.at.step, theirs.at.phase, theirs.at.op)


def _boundary_bytes(recipe: Recipe) -> int:
    """What one layer hands to the next."""
    values = resolve(recipe).values
    elements = values["micro_batch_size"] * values["sequence_length"] * recipe.model["hidden_size"]  # type: ignore[index]
    return round_to_block(elements * DType(values["dtype"]).itemsize_bytes)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(RECIPES)
def test_every_walk_is_sound(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    walk = training_step.walk(resolved, found)[1]
    load, first, second = walk.phases[0], walk.phases[1:4], walk.phases[4:]
    for phase in walk.phases:
        assert phase.end_bytes <= phase.peak_bytes
        assert sum(phase.components.values()) == phase.peak_bytes
        assert min(phase.components.values()) > 0
        assert min(phase.storages.values(), default=0) >= 0
    assert load.end_bytes >= sum(found.state.loaded.values())
    # The steady state: what the second step leaves is what the first one left.
    assert first[-1].end_bytes == second[-1].end_bytes
    grown = found.state.states.device_bytes if found.optimizer.lazy else 0
    assert second[1].end_bytes - first[1].end_bytes == grown
    # Accumulation finds the gradients of the micro-batch before.
    accumulates = (recipe.gradient_accumulation_steps or 1) > 1
    assert all((Component.GRADIENTS in phase.components) is accumulates for phase in (first[0], second[0]))


def test_a_third_step_is_like_the_second() -> None:
    resolved, found = prepared(method="lora")
    recording = recorded(resolved, found)
    resident = Resident(found.state.loaded, found.state.gradients_bytes, 0)
    walk = Walker(recording, resident, steps=4).run()
    heights = [phase.peak_bytes for phase in walk.phases]
    assert heights[4:7] == heights[7:10] == heights[10:13]
