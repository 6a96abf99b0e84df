"""The replay in C against the Python model, on random events and on runs of real steps."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.recipe import Recipe
from memplan.step import native
from memplan.step.allocator_run import EMPTY_CACHE, AllocatorReport, Event, replay
from memplan.step.forms import Terms
from memplan.step.replay import Program, Written, play
from memplan.units import BLOCK_BYTES, MIB
from tests.step.small_runs import RECIPES, prepared, run_of

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")

SIZES = st.one_of(
    st.integers(1, 40).map(lambda blocks: blocks * BLOCK_BYTES),
    st.sampled_from([MIB - 512, MIB, MIB + 512, 9 * MIB, 10 * MIB - 512, 10 * MIB, 19 * MIB, 21 * MIB, 200 * MIB]),
    st.integers(1, 60_000).map(lambda blocks: blocks * BLOCK_BYTES),
)


@st.composite
def random_events(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = ["load"]
    alive: list[int] = []
    for key in range(1, draw(st.integers(1, 60))):
        if draw(st.integers(0, 9)) == 0:
            events.append(f"phase {key}")
        if draw(st.integers(0, 9)) == 0:
            events.append(EMPTY_CACHE)
        for _ in range(draw(st.integers(0, min(2, len(alive))))):
            events.append((alive.pop(draw(st.integers(0, len(alive) - 1))), 0))
        events.append((key, draw(SIZES)))
        alive.append(key)
    return events


def in_c(events: list[Event], *, expandable: bool = False) -> tuple[int, list[list[int]]]:
    keys, sizes = array("i"), array("i")
    table: list[int] = []
    begins = []
    for event in events:
        if isinstance(event, str):
            begins.append(len(keys))
            continue
        keys.append(event[0])
        sizes.append(len(table) if event[1] else -1)
        if event[1]:
            table.append(event[1])
    count = max(keys, default=0) + 1
    return native.replay(keys, sizes, table, count, begins, expandable_segments=expandable)


def figures(report: AllocatorReport) -> list[list[int]]:
    return [
        [
            phase.live_bytes, phase.allocated_bytes, phase.reserved_bytes,
            phase.end_live_bytes, phase.end_allocated_bytes, phase.end_reserved_bytes,
        ]
        for phase in report.phases
    ]  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=400)
@given(random_events(), st.booleans())
def test_random_events(events: list[Event], expandable: bool) -> None:
    segments, rows = in_c(events, expandable=expandable)
    report = replay(events, expandable_segments=expandable)
    # The Python model leaves out a first phase in which nothing happened.
    assert rows[-len(report.phases) :] == figures(report)
    assert segments == report.segments


@settings(derandomize=True, deadline=None, max_examples=25)
@given(RECIPES, st.booleans())
def test_runs_of_real_steps(recipe: Recipe, expandable: bool) -> None:
    run = run_of(*prepared(recipe))
    terms = Terms(run.micro_steps[0].infos)
    program = Program(run, Written(terms))
    events = program._events([terms.recorded()[term] * weight for term, weight in program.written.table])
    theirs = replay(events, expandable_segments=expandable)
    assert program.play(terms.recorded(), expandable_segments=expandable) == theirs


def test_an_allocation_of_nothing_takes_nothing() -> None:
    keys, sizes = array("i", [1, 2, 1, 2]), array("i", [0, 1, -1, -1])
    assert native.replay(keys, sizes, [0, 512], 3, [0]) == (1, [[512, 512, 2 * MIB, 0, 0, 2 * MIB]])


def test_a_capacity_is_the_python_models_business() -> None:
    run = run_of(*prepared())
    needed = play(run).max_reserved_bytes
    assert not play(replace(run), capacity_bytes=needed - 1).survived
