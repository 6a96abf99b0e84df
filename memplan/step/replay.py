"""The same run for the caching allocator: every storage of load and two steps, in order, as blocks and segments.

Known limits:
    Equal layers are played one by one, so this costs tens of milliseconds where the walk costs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Phase
from memplan.step.allocator import AllocatorReport, replay
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording

Event = tuple[int, int] | str


@dataclass(frozen=True)
class Run:
    """What is played.

    Attributes:
        load_events: (key, bytes) of each allocation and (key, 0) of each free while loading.
        last_key: the highest key in them.
        recording: one micro-step, layer by layer (not folded).
        construction: states that the optimizer makes when it is constructed.
        clipping, optimizer_events: what clipping and the optimizer allocate and free.
        steps: how many steps.
    """

    load_events: Sequence[tuple[int, int]]
    last_key: int
    recording: Recording
    construction: Sequence[OptimizerEvent]
    clipping: Sequence[OptimizerEvent]
    optimizer_events: Sequence[OptimizerEvent]
    steps: int = 2


def play(run: Run, *, expandable_segments: bool = False, capacity_bytes: int | None = None) -> AllocatorReport:
    """Maxima of allocated and reserved memory, or where a run of limited capacity dies."""
    return replay(_events(run), expandable_segments=expandable_segments, capacity_bytes=capacity_bytes)


class _Keys:
    """Numbers for storages, unique over the whole run."""

    def __init__(self, last: int) -> None:
        self.last = last

    def new(self) -> int:
        self.last += 1
        return self.last


def _events(run: Run) -> Iterator[Event]:
    keys = _Keys(run.last_key)
    yield "load"
    yield from run.load_events
    yield from _optimizer(run.construction, keys, 1)
    named: list[int] = []
    for step in range(1, run.steps + 1):
        held: dict[int, int] = {}
        for phase in (Phase.FORWARD, Phase.BACKWARD):
            yield f"{phase} {step}"
            yield from _segments(run.recording, phase, held, keys, step)
            if phase is Phase.FORWARD:
                yield from ((key, 0) for key in named)
                named = []
        yield f"{Phase.OPTIMIZER_STEP} {step}"
        yield from _optimizer(run.clipping, keys, step)
        yield from _optimizer(run.optimizer_events, keys, step)
        named = [held.pop(index) for index in sorted(run.recording.named) if index in held]
        # zero_grad(set_to_none=True), then the batch gives way to the next one.
        infos = run.recording.infos
        for index in sorted(held, key=lambda index: infos[index].component is not Component.GRADIENTS):
            yield held[index], 0


def _segments(recording: Recording, phase: Phase, held: dict[int, int], keys: _Keys, step: int) -> Iterator[Event]:
    infos = recording.infos
    for segment in recording.segments:
        if segment.phase != phase:
            continue
        assert segment.count == 1, "the allocator needs every layer by itself"
        for event in segment.events:
            if event >= 0:
                size = infos[event].size_bytes
                if event in recording.workspaces:
                    if step == 1:
                        yield keys.new(), size
                elif size:
                    held[event] = keys.new()
                    yield held[event], size
            elif ~event in held:
                yield held.pop(~event), 0


def _optimizer(events: Iterable[OptimizerEvent], keys: _Keys, step: int) -> Iterator[Event]:
    alive: dict[str, list[int]] = {}
    for event in events:
        if event.once and step > 1:
            continue
        if event.allocates:
            made = alive.setdefault(event.label, [])
            for size, count in event.blocks:
                for _ in range(count):
                    key = keys.new()
                    made.append(key)
                    yield key, size
        else:
            for key in alive.pop(event.label):
                yield key, 0
