"""Unfolding: the events of a folded recording are those of executing every layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from memplan import training_step
from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.recipe import Recipe
from memplan.step.recording import Recording
from memplan.step.tensor import Segment, StorageInfo
from memplan.step.unfold import CannotUnfold, unfold
from tests.step.small_runs import RECIPES, prepared, recorded


def sizes(recording: Recording) -> list[int]:
    """Every allocation and free by size; frees in a row are sorted, because their order makes no difference."""
    found: list[int] = []
    row: list[int] = []
    for change in _changes(recording):
        if change < 0:
            row.append(change)
            continue
        found += [*sorted(row), change]
        row = []
    return found + sorted(row)


def _changes(recording: Recording) -> Iterator[int]:
    alive: set[tuple[int, int]] = set()
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        for instance, allocates in unfold(recording, phase):
            size = recording.infos[instance[0]].size_bytes
            if allocates:
                assert instance not in alive
                alive.add(instance)
                yield size
            else:
                alive.remove(instance)
                yield -size


@settings(derandomize=True, deadline=None, max_examples=60)
@given(RECIPES)
def test_unfolded_events_are_those_of_every_layer(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    folded = recorded(resolved, found, fold=True)
    executed = recorded(resolved, found, fold=False)
    assert sizes(folded) == sizes(executed)


def test_the_comparison_is_of_folded_layers() -> None:
    (folded,), _ = training_step.walk(*prepared())
    assert max(segment.count for segment in folded.segments) == 3
    assert folded.ports


def _info(index: int, component: Component = Component.TEMPORARIES, *, in_backward: bool = True) -> StorageInfo:
    return StorageInfo(index, 512, component, "op", "", (1,), DType.UINT8, 3, in_backward, in_backward)


def test_layers_that_hand_on_two_gradients_are_refused() -> None:
    recording = Recording(
        [_info(index) for index in range(4)],
        [Segment("layers.1", Phase.BACKWARD, 3, [2, 3, ~0, ~1])],
        frozenset(),
        frozenset(),
        (),
    )
    with pytest.raises(CannotUnfold):
        list(unfold(recording, Phase.BACKWARD))


def test_one_gradient_is_handed_down() -> None:
    """Each layer makes 1 and frees what the layer above made; the first frees 0, which comes from outside."""
    outside = StorageInfo(0, 512, Component.TEMPORARIES, "op", "", (1,), DType.UINT8, 1, True, True)
    recording = Recording(
        [outside, _info(1)],
        [
            Segment("", Phase.BACKWARD, 1, [0]),
            Segment("layers.1", Phase.BACKWARD, 3, [1, ~0]),
            Segment("", Phase.BACKWARD, 1, [~1]),
        ],
        frozenset(),
        frozenset(),
        (),
    )
    assert list(unfold(recording, Phase.BACKWARD)) == [
        ((0, -1), True),
        ((1, 2), True), ((0, -1), False),
        ((1, 1), True), ((1, 2), False),
        ((1, 0), True), ((1, 1), False),
        ((1, 0), False),
    ]  # fmt: skip
