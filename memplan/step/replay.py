"""The same run for the caching allocator: every storage of load and two steps, in order, as blocks and segments.

The events of a run are written down once as a `Program`; sizes for another batch are filled in when it is played.

Known limits:
    Equal layers are played one by one: a millisecond or more in C, tens of them in Python.
    With gradient accumulation three micro-steps are played at most; more of them could fragment further.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Phase
from memplan.step import native
from memplan.step.allocator import AllocatorReport, PhaseMaxima, replay
from memplan.step.forms import BYTES, Terms
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.unfold import Instance, unfold

# (key, bytes) or (key, ~storage) for an allocation, (key, None) for a free, or the phase that begins.
Event = tuple[int, int | None] | str


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


class Program:
    """The events of a run, with sizes still open.

    Args:
        run: what is played.
        terms: the sizes of its recordings' storages.

    Attributes:
        keys: the storage of each event, numbered from 1 in order of birth.
        sizes: what each event allocates, as an index into `table`; -1 for a free.
        table: each size as a term and how many of it.
        phases: names, with the event that each begins at.
    """

    def __init__(self, run: Run, terms: Terms) -> None:
        self.keys, self.sizes = array("i"), array("i")
        self.table: list[tuple[int, int]] = []
        self.phases: list[tuple[str, int]] = []
        numbers: dict[tuple[int, int], int] = {}
        for event in _events(run):
            if isinstance(event, str):
                self.phases.append((event, len(self.keys)))
                continue
            key, size = event
            self.keys.append(key)
            if size is None:
                self.sizes.append(-1)
                continue
            entry = (BYTES, size) if size >= 0 else terms.of[~size]
            number = numbers.setdefault(entry, len(numbers))
            if number == len(self.table):
                self.table.append(entry)
            self.sizes.append(number)
        self.n_keys = max(self.keys, default=0) + 1

    def play(
        self, sizes: Sequence[int], *, expandable_segments: bool = False, capacity_bytes: int | None = None
    ) -> AllocatorReport:
        """Maxima of allocated and reserved memory, or where a run of limited capacity dies.

        Args:
            sizes: bytes of each of the recording's terms.
            expandable_segments: the allocator's mode.
            capacity_bytes: what all segments together may take; None for no limit.
        """
        table = [sizes[term] * weight for term, weight in self.table]
        if capacity_bytes is not None or native.library() is None:
            events = self._events(table)
            return replay(events, expandable_segments=expandable_segments, capacity_bytes=capacity_bytes)
        begins = [position for _, position in self.phases]
        segments, figures = native.replay(
            self.keys, self.sizes, table, self.n_keys, begins, expandable_segments=expandable_segments
        )
        phases = tuple(PhaseMaxima(name, *row) for (name, _), row in zip(self.phases, figures, strict=True))
        live, allocated, reserved = (max(row[figure] for row in figures) for figure in range(3))
        return AllocatorReport(live, allocated, reserved, phases, 0, segments)

    def _events(self, table: Sequence[int]) -> Iterator[tuple[int, int] | str]:
        names = {position: name for name, position in reversed(self.phases)}
        empty: set[int] = set()
        for position, (key, number) in enumerate(zip(self.keys, self.sizes, strict=True)):
            if position in names:
                yield from (name for name, begin in self.phases if begin == position)
            size = table[number] if number >= 0 else 0
            if number >= 0 and not size:
                empty.add(key)
            elif size or key not in empty:
                yield key, size
        yield from (name for name, begin in self.phases if begin == len(self.keys))


def play(run: Run, *, expandable_segments: bool = False, capacity_bytes: int | None = None) -> AllocatorReport:
    """What the allocator makes of a run as it was recorded (`Program.play`)."""
    terms = Terms(run.micro_steps[0].infos)
    return Program(run, terms).play(
        terms.recorded(), expandable_segments=expandable_segments, capacity_bytes=capacity_bytes
    )


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
    yield from ((key, size or None) for key, size in run.load_events)
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
                    yield from ((key, None) for key in named)
                    named = []
            infos = recording.infos
            for instance, key in held.items():
                is_gradient = infos[instance[0]].component is Component.GRADIENTS
                (gradients if is_gradient else named if instance[0] in recording.named else batch).append(key)
            if number < len(run.micro_steps) - 1:
                yield from ((key, None) for key in batch)
                batch = []
        yield f"{Phase.OPTIMIZER_STEP} {step}"
        yield from _optimizer(run.clipping, keys, step)
        yield from _optimizer(run.optimizer_events, keys, step)
        # zero_grad(set_to_none=True), then the batch gives way to the next one.
        yield from ((key, None) for key in gradients)
        yield from ((key, None) for key in batch)


def _micro_step(
    recording: Recording, phase: Phase, held: dict[Instance, int], keys: _Keys, *, first: bool
) -> Iterator[Event]:
    infos = recording.infos
    for instance, allocates in unfold(recording, phase):
        if not allocates:
            key = held.pop(instance, None)
            if key is not None:
                yield key, None
            continue
        index = instance[0]
        if index in recording.workspaces:
            if first:
                yield keys.new(), infos[index].size_bytes
        elif infos[index].size_bytes:
            key = held[instance] = keys.new()
            yield key, ~index


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
                yield key, None
