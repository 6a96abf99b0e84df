"""The same run for the caching allocator: every storage of load and two steps, in order, as blocks and segments.

Known limits:
    Equal layers are played one by one, so this costs tens of milliseconds where the walk costs a few.
    With gradient accumulation three micro-steps are played at most; more of them could fragment further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Phase
from memplan.step.allocator import AllocatorReport, replay
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.unfold import Instance, unfold

Event = tuple[int, int] | str


@dataclass(frozen=True)
class Run:
    """What is played.

    Attributes:
        load_events: (key, bytes) of each allocation and (key, 0) of each free while loading.
        last_key: the highest key in them.
        micro_steps: the recordings of one step's micro-steps in order; equal layers are played one by one.
        construction: states that the optimizer makes when it is constructed.
        clipping, optimizer_events: what clipping and the optimizer allocate and free.
        steps: how many steps.
    """

    load_events: Sequence[tuple[int, int]]
    last_key: int
    micro_steps: Sequence[Recording]
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
        gradients: list[int] = []
        batch: list[int] = []
        for number, recording in enumerate(run.micro_steps):
            held: dict[Instance, int] = {}
            for phase in (Phase.FORWARD, Phase.BACKWARD):
                yield f"{phase} {step}"
                yield from _micro_step(recording, phase, held, keys, first=step == 1 and not number)
                if phase is Phase.FORWARD:
                    yield from ((key, 0) for key in named)
                    named = []
            infos = recording.infos
            for instance, key in held.items():
                is_gradient = infos[instance[0]].component is Component.GRADIENTS
                (gradients if is_gradient else named if instance[0] in recording.named else batch).append(key)
            if number < len(run.micro_steps) - 1:
                yield from ((key, 0) for key in batch)
                batch = []
        yield f"{Phase.OPTIMIZER_STEP} {step}"
        yield from _optimizer(run.clipping, keys, step)
        yield from _optimizer(run.optimizer_events, keys, step)
        # zero_grad(set_to_none=True), then the batch gives way to the next one.
        yield from ((key, 0) for key in gradients)
        yield from ((key, 0) for key in batch)


def _micro_step(
    recording: Recording, phase: Phase, held: dict[Instance, int], keys: _Keys, *, first: bool
) -> Iterator[Event]:
    infos = recording.infos
    for instance, allocates in unfold(recording, phase):
        if not allocates:
            key = held.pop(instance, None)
            if key is not None:
                yield key, 0
            continue
        size = infos[instance[0]].size_bytes
        if instance[0] in recording.workspaces:
            if first:
                yield keys.new(), size
        elif size:
            key = held[instance] = keys.new()
            yield key, size


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
