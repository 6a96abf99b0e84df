"""A run of the allocator: allocations and frees in order, and the maxima that they lead to, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from memplan.step.allocator import AllocatorOutOfMemoryError, Block, CachingAllocator

# An event is (key, size > 0) for an allocation, (key, size, stream) for one that another CUDA stream than the first makes,
# (key, 0) for the matching free, (key, `FREE_LATER`) for one of memory that another stream may still use
# (`Tensor.record_stream`), or a str: the phase that begins here.
Event = tuple[int, int] | tuple[int, int, int] | str
FREE_LATER: Final = -1
# The program calls torch.cuda.empty_cache(). No allocation may use key 0.
EMPTY_CACHE: Final = (0, 0)
# All streams' work is done: what was freed for later can be had again.
SYNCHRONIZE: Final = (0, FREE_LATER)


@dataclass(frozen=True, slots=True)
class PhaseMaxima:
    """The highest values within one phase, the values at its start included, and the values at its end."""

    phase: str
    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    end_live_bytes: int
    end_allocated_bytes: int
    end_reserved_bytes: int


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The allocation that failed in a run of limited capacity, after everything cached had been released."""

    event_index: int
    phase: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class AllocatorReport:
    """What a run of the allocator showed.

    Attributes:
        max_live_bytes: storages alive, each rounded to 512 bytes.
        max_allocated_bytes: `torch.cuda.max_memory_allocated`: blocks in use.
        max_reserved_bytes: `torch.cuda.max_memory_reserved`: segments.
        phases: the same by phase, in order; a name that occurs again makes a new entry.
        alloc_retries: allocations that succeeded only after cached segments were released.
        out_of_memory: where a run with a capacity failed; None if it survived.
        segments: segments held at the end.
    """

    max_live_bytes: int
    max_allocated_bytes: int
    max_reserved_bytes: int
    phases: tuple[PhaseMaxima, ...]
    alloc_retries: int
    segments: int
    out_of_memory: OutOfMemory | None = None

    @property
    def survived(self) -> bool:
        """Whether every allocation was served."""
        return self.out_of_memory is None


def replay(
    events: Iterable[Event], *, expandable_segments: bool = False, capacity_bytes: int | None = None
) -> AllocatorReport:
    """Plays allocations and frees in order, from an empty allocator.

    Args:
        events: `(key, size_bytes)` for an allocation of `size_bytes` > 0 under any int `key` other than 0, with a third number
            for one by another CUDA stream; `(key, 0)` or `(key, FREE_LATER)` for its free; `EMPTY_CACHE`, `SYNCHRONIZE`, or a
            `str` that names the phase which begins.
        expandable_segments: the allocator mode.
        capacity_bytes: what segments may take together (usable device memory less the context); None for no limit.

    Returns:
        Maxima of the whole run and by phase. With a capacity, `out_of_memory` says where the run ended.

    Raises:
        ValueError: a free of a key that is not allocated, or a second allocation under a key that is.
    """
    allocator = CachingAllocator(expandable_segments=expandable_segments, capacity_bytes=capacity_bytes)
    held: dict[int, tuple[Block, int]] = {}
    phases: list[PhaseMaxima] = []
    phase = ""
    live = allocated = reserved = 0
    top_live = top_allocated = top_reserved = 0
    failure: OutOfMemory | None = None

    def close() -> None:
        nonlocal live, allocated, reserved, top_live, top_allocated, top_reserved
        if phase or live or allocator.live_bytes:
            ends = (allocator.live_bytes, allocator.allocated_bytes, allocator.reserved_bytes)
            phases.append(PhaseMaxima(phase, live, allocated, reserved, *ends))
        top_live, top_allocated = max(top_live, live), max(top_allocated, allocated)
        top_reserved = max(top_reserved, reserved)
        live, allocated, reserved = allocator.live_bytes, allocator.allocated_bytes, allocator.reserved_bytes

    for index, event in enumerate(events):
        if isinstance(event, str):
            close()
            phase = event
            continue
        key, size = event[0], event[1]
        if size > 0:
            if key in held or key == 0:
                raise ValueError(f"event {index}: key {key} cannot be allocated (in use, or 0)")
            try:
                held[key] = (allocator.malloc(size, event[2] if len(event) == 3 else 0), size)
            except AllocatorOutOfMemoryError:
                assert capacity_bytes is not None
                failure = OutOfMemory(
                    index, phase, size, allocator.allocated_bytes, allocator.reserved_bytes, capacity_bytes
                )
                break
            if allocator.live_bytes > live:
                live = allocator.live_bytes
            if allocator.allocated_bytes > allocated:
                allocated = allocator.allocated_bytes
            if allocator.reserved_bytes > reserved:
                reserved = allocator.reserved_bytes
        elif event == EMPTY_CACHE:
            allocator.release_cached_blocks()
        elif event == SYNCHRONIZE:
            allocator.synchronize()
        else:
            if key not in held:
                raise ValueError(f"event {index}: key {key} is freed but not allocated")
            allocator.free(*held.pop(key), later=size == FREE_LATER)
    close()
    return AllocatorReport(
        top_live, top_allocated, top_reserved, tuple(phases), allocator.alloc_retries, allocator.segments, failure
    )
