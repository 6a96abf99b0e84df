"""The allocator model against cases worked out by hand from c10/cuda/CUDACachingAllocator.cpp, and its invariants."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.step.allocator import CachingAllocator, segment_size_bytes
from memplan.step.allocator_run import EMPTY_CACHE, Event, replay
from memplan.units import KIB, MIB, round_to_block


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_segment_sizes(size: int, segment: int) -> None:
    assert segment_size_bytes(size) == segment
    report = replay([(1, size)])
    assert report.max_reserved_bytes == segment


def test_rounds_to_512_and_counts_blocks() -> None:
    report = replay([(1, 1), (2, 513)])
    assert report.max_live_bytes == report.max_allocated_bytes == 512 + 1024
    assert report.max_reserved_bytes == 2 * MIB
    assert report.segments == 1


def test_large_block_keeps_a_remainder_of_up_to_1_mib() -> None:
    # 20 MiB segment: 19 MiB leaves exactly 1 MiB, which is not split off and counts as allocated.
    unsplit = replay([(1, 9 * MIB), (1, 0), (2, 9 * MIB), (3, 10 * MIB)])
    assert unsplit.max_live_bytes == 19 * MIB
    assert unsplit.max_allocated_bytes == 20 * MIB
    assert unsplit.max_reserved_bytes == 20 * MIB
    split = replay([(2, 9 * MIB), (3, 10 * MIB - 512)])
    assert split.max_allocated_bytes == split.max_live_bytes == 19 * MIB - 512


def test_expandable_segments_split_exactly() -> None:
    report = replay([(2, 9 * MIB), (3, 10 * MIB)], expandable_segments=True)
    assert report.max_allocated_bytes == report.max_live_bytes == 19 * MIB
    assert report.max_reserved_bytes == 20 * MIB


def test_expandable_segment_grows_by_20_mib_at_its_end() -> None:
    events: list[Event] = [(1, 19 * MIB), (2, 2 * MIB), (3, 100 * MIB)]
    assert replay(events, expandable_segments=True).max_reserved_bytes == 140 * MIB
    # The default allocator needs 20, then 20 for what does not fit beside it, then a segment of its own.
    assert replay(events).max_reserved_bytes == 20 * MIB + 20 * MIB + 100 * MIB


def test_expandable_fills_the_free_end_before_mapping_more() -> None:
    # The first 30 MiB are free at the end of the mapped space: a request of 50 MiB maps only 20 MiB more.
    events: list[Event] = [(1, 10 * MIB), (2, 30 * MIB), (2, 0), (3, 50 * MIB)]
    assert replay(events, expandable_segments=True).max_reserved_bytes == 60 * MIB
    assert replay(events).max_reserved_bytes == 10 * MIB + 30 * MIB + 50 * MIB


def test_best_fit_takes_the_smallest_block() -> None:
    events: list[Event] = [(1, 40 * MIB), (2, 30 * MIB), (1, 0), (2, 0), (3, 29 * MIB + 512), (4, 40 * MIB)]
    report = replay(events)
    assert report.max_reserved_bytes == 70 * MIB
    assert report.max_allocated_bytes == 70 * MIB


def test_neighbours_merge() -> None:
    events: list[Event] = [(1, 4 * MIB), (2, 4 * MIB), (3, 4 * MIB), (1, 0), (3, 0), (2, 0), (4, 20 * MIB)]
    assert replay(events).max_reserved_bytes == 20 * MIB


def test_freed_small_memory_does_not_serve_large_requests() -> None:
    events: list[Event] = [(1, MIB), (2, MIB), (1, 0), (2, 0), (3, 2 * MIB)]
    assert replay(events).max_reserved_bytes == 2 * MIB + 20 * MIB


def test_empty_cache_returns_whole_segments_only() -> None:
    allocator = CachingAllocator()
    first = allocator.malloc(30 * MIB)
    second = allocator.malloc(4 * MIB)
    allocator.free(first, 30 * MIB)
    allocator.release_cached_blocks()
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(second, 4 * MIB)
    allocator.release_cached_blocks()
    assert allocator.reserved_bytes == 0
    assert allocator.segments == 0


def test_empty_cache_unmaps_granules_inside_an_expandable_segment() -> None:
    events: list[Event] = [(1, 30 * MIB), (2, 30 * MIB), (1, 0), EMPTY_CACHE, "after", (3, MIB // 2)]
    report = replay(events, expandable_segments=True)
    # 60 MiB mapped; the free 30 MiB hold one whole granule of 20 MiB. The small pool then maps 2 MiB.
    assert report.phases[-1].end_reserved_bytes == 40 * MIB + 2 * MIB


def test_capacity_run_releases_cached_segments_and_retries() -> None:
    events: list[Event] = [(1, 60 * MIB), (1, 0), (2, 70 * MIB)]
    report = replay(events, capacity_bytes=100 * MIB)
    assert report.survived
    assert report.alloc_retries == 1
    assert report.max_reserved_bytes == 70 * MIB
    assert replay(events).max_reserved_bytes == 130 * MIB


def test_capacity_run_fails_where_fragments_cannot_be_released() -> None:
    events: list[Event] = [
        "load", (1, 12 * MIB), (2, 8 * MIB), (3, 11 * MIB), (1, 0), (3, 0), "forward", (4, 90 * MIB), (5, 30 * MIB),
    ]  # fmt: skip
    report = replay(events, capacity_bytes=130 * MIB)
    assert report.out_of_memory is not None
    assert report.out_of_memory.phase == "forward"
    assert report.out_of_memory.requested_bytes == 30 * MIB
    assert report.out_of_memory.event_index == 8
    assert not report.survived


def test_phases_report_maxima_and_ends() -> None:
    report = replay(["a", (1, 12 * MIB), (2, 14 * MIB), (2, 0), "b", (1, 0), "c"])
    assert [entry.phase for entry in report.phases] == ["a", "b", "c"]
    first, second, third = report.phases
    assert (first.allocated_bytes, first.end_allocated_bytes) == (26 * MIB, 12 * MIB)
    assert (second.allocated_bytes, second.end_allocated_bytes) == (12 * MIB, 0)
    assert (third.allocated_bytes, third.reserved_bytes) == (0, 26 * MIB)


def test_segment_observer_sees_every_change() -> None:
    changes: list[tuple[str, int]] = []
    allocator = CachingAllocator(on_segment=lambda action, _address, size: changes.append((action, size)))
    block = allocator.malloc(30 * MIB)
    allocator.free(block, 30 * MIB)
    allocator.release_cached_blocks()
    assert changes == [("segment_alloc", 30 * MIB), ("segment_free", 30 * MIB)]


@pytest.mark.parametrize("events", [[(1, 0)], [(1, 512), (1, 512)], [(1, 512), (1, 0), (1, 0)]])
def test_inconsistent_events_are_refused(events: list[Event]) -> None:
    with pytest.raises(ValueError, match="event"):
        replay(events)


@st.composite
def programs(draw: st.DrawFn) -> list[Event]:
    """Random programs: sizes from bytes to tens of MiB, frees in any order, now and then an empty_cache."""
    events: list[Event] = []
    alive: list[int] = []
    for key in range(1, draw(st.integers(1, 60)) + 1):
        if alive and draw(st.booleans()):
            events.append((alive.pop(draw(st.integers(0, len(alive) - 1))), 0))
        elif draw(st.integers(0, 20)) == 0:
            events.append(EMPTY_CACHE)
        scale = draw(st.sampled_from([1, 513, 64 * KIB, MIB]))
        events.append((key, draw(st.integers(1, 40)) * scale))
        alive.append(key)
    return events


@settings(max_examples=150, deadline=None)
@given(programs(), st.booleans())
def test_invariants(events: list[Event], expandable: bool) -> None:
    report = replay(events, expandable_segments=expandable)
    live = peak = 0
    sizes: dict[int, int] = {}
    for event in events:
        assert not isinstance(event, str)
        key, size = event
        if size:
            sizes[key] = round_to_block(size)
            live += sizes[key]
        elif key:
            live -= sizes.pop(key)
        peak = max(peak, live)
    assert report.max_live_bytes == peak
    assert report.max_live_bytes <= report.max_allocated_bytes <= report.max_reserved_bytes
    if expandable:
        assert report.max_allocated_bytes == peak
    assert report.max_reserved_bytes % (2 * MIB) == 0


@settings(max_examples=150, deadline=None)
@given(programs(), st.booleans())
def test_everything_can_be_returned(events: list[Event], expandable: bool) -> None:
    allocator = CachingAllocator(expandable_segments=expandable)
    held = {}
    for event in events:
        assert not isinstance(event, str)
        key, size = event
        if size:
            held[key] = (allocator.malloc(size), size)
        elif key:
            allocator.free(*held.pop(key))
        else:
            allocator.release_cached_blocks()
        blocks = sorted((block.address, block.address + block.size_bytes) for block, _ in held.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(blocks))
    for block, size in held.values():
        allocator.free(block, size)
    allocator.release_cached_blocks()
    assert allocator.live_bytes == allocator.allocated_bytes == allocator.reserved_bytes == 0


@settings(max_examples=100, deadline=None)
@given(programs(), st.booleans())
def test_a_capacity_of_the_reserved_maximum_always_survives(events: list[Event], expandable: bool) -> None:
    free_run = replay(events, expandable_segments=expandable)
    limited = replay(events, expandable_segments=expandable, capacity_bytes=free_run.max_reserved_bytes)
    assert limited.survived
    assert limited.alloc_retries == 0
    tight = replay(events, expandable_segments=expandable, capacity_bytes=free_run.max_live_bytes - 512)
    assert not tight.survived
