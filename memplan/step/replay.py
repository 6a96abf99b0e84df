"""The same run for the caching allocator: every storage of load and two steps, in order, as blocks and segments.

The events of a run are written down once as a `Program`; sizes for another batch are filled in when it is played.

Known limits:
    Equal layers are played one by one: a millisecond or more in C, tens of them in Python.
    With gradient accumulation three micro-steps are played at most; more of them could fragment further.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Phase
from memplan.step import native
from memplan.step.allocator import EMPTY_CACHE, AllocatorReport, PhaseMaxima, replay
from memplan.step.forms import BYTES, Terms
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.unfold import Instance, unfold


@dataclass(frozen=True)
class Run:
    """What is played.

    Attributes:
        load_events: (key, bytes) of each allocation and (key, 0) of each free while loading; `EMPTY_CACHE`.
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
        keys: the storage of each event, numbered from 1; the free of 0 is `EMPTY_CACHE`.
        sizes: what each event allocates, as an index into `table`; -1 for a free.
        table: each size as a term and how many of it.
        phases: names, with the event that each begins at.
        ends: the event before which each step but the last has ended.
    """

    def __init__(self, run: Run, terms: Terms) -> None:
        self.keys, self.sizes = array("i"), array("i")
        self.table: list[tuple[int, int]] = []
        self.phases: list[tuple[str, int]] = []
        self.ends: list[int] = []
        self._terms = terms
        self._numbers: dict[tuple[int, int], int] = {}
        self._last_key = run.last_key
        self._write(run)
        self.n_keys = self._last_key + 1

    def play(
        self,
        sizes: Sequence[int],
        *,
        expandable_segments: bool = False,
        capacity_bytes: int | None = None,
        empty_cache: bool = False,
    ) -> AllocatorReport:
        """Maxima of allocated and reserved memory, or where a run of limited capacity dies.

        Args:
            sizes: bytes of each of the recording's terms.
            expandable_segments: the allocator's mode.
            capacity_bytes: what all segments together may take; None for no limit.
            empty_cache: whether `torch.cuda.empty_cache()` is called after every step (played in Python).
        """
        table = [sizes[term] * weight for term, weight in self.table]
        empty_cached = empty_cache or (expandable_segments and 0 in self.keys)  # the C model does not unmap
        if capacity_bytes is not None or empty_cached or native.library() is None:
            events = self._events(table, frozenset(self.ends) if empty_cache else frozenset())
            return replay(events, expandable_segments=expandable_segments, capacity_bytes=capacity_bytes)
        begins = [position for _, position in self.phases]
        segments, figures = native.replay(
            self.keys, self.sizes, table, self.n_keys, begins, expandable_segments=expandable_segments
        )
        phases = tuple(PhaseMaxima(name, *row) for (name, _), row in zip(self.phases, figures, strict=True))
        live, allocated, reserved = (max(row[figure] for row in figures) for figure in range(3))
        return AllocatorReport(live, allocated, reserved, phases, 0, segments)

    def _write(self, run: Run) -> None:
        """Every event of the run, in order."""
        self._phase("load")
        for key, size in run.load_events:
            self._add(key, size or None)
        self._optimizer(run.construction, 1)
        known: list[int] = []  # table entry of each storage, once it is asked for

        def number(index: int) -> int:
            if not known:
                known.extend([-1] * len(self._terms.of))
            if known[index] < 0:
                known[index] = self._number(self._terms.of[index])
            return known[index]

        written: dict[int, _MicroStep] = {}
        named: list[int] = []
        for step in range(1, run.steps + 1):
            gradients: list[int] = []
            batch: list[int] = []
            for place, recording in enumerate(run.micro_steps):
                if id(recording) not in written:
                    written[id(recording)] = _MicroStep(recording, number)
                played = written[id(recording)]
                offset = self._last_key + 1
                self._last_key += played.births
                for phase in (Phase.FORWARD, Phase.BACKWARD):
                    self._phase(f"{phase} {step}")
                    self._play(played, phase, offset, recording if step == 1 and not place else None)
                    if phase is Phase.FORWARD:
                        self._free(named)
                        named = []
                for key, index in played.left:
                    is_gradient = recording.infos[index].component is Component.GRADIENTS
                    (gradients if is_gradient else named if index in recording.named else batch).append(offset + key)
                if place < len(run.micro_steps) - 1:
                    self._free(batch)
                    batch = []
            self._phase(f"{Phase.OPTIMIZER_STEP} {step}")
            self._optimizer(run.clipping, step)
            self._optimizer(run.optimizer_events, step)
            # zero_grad(set_to_none=True), then the batch gives way to the next one.
            self._free(gradients)
            self._free(batch)
            if step < run.steps:
                self.ends.append(len(self.keys))

    def _play(self, played: _MicroStep, phase: Phase, offset: int, first: Recording | None) -> None:
        """One phase of a micro-step; `first` is the recording where it allocates its workspaces."""
        begin = 0
        for position, index in played.workspaces[phase] if first is not None else ():
            self._extend(played, phase, offset, begin, position)
            assert first is not None
            self._add(self._new_key(), first.infos[index].size_bytes)
            begin = position
        self._extend(played, phase, offset, begin, len(played.keys[phase]))

    def _extend(self, played: _MicroStep, phase: Phase, offset: int, begin: int, end: int) -> None:
        self.keys.extend([key + offset for key in played.keys[phase][begin:end]])
        self.sizes.extend(played.sizes[phase][begin:end])

    def _optimizer(self, events: Iterable[OptimizerEvent], step: int) -> None:
        alive: dict[str, list[int]] = {}
        for event in events:
            if event.once and step > 1:
                continue
            if not event.allocates:
                self._free(alive.pop(event.label))
                continue
            made = alive.setdefault(event.label, [])
            for size, count in event.blocks:
                for _ in range(count):
                    made.append(self._new_key())
                    self._add(made[-1], size)

    def _phase(self, name: str) -> None:
        self.phases.append((name, len(self.keys)))

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _add(self, key: int, size_bytes: int | None) -> None:
        """An allocation, or a free where the size is None."""
        self.keys.append(key)
        self.sizes.append(-1 if size_bytes is None else self._number((BYTES, size_bytes)))

    def _free(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._add(key, None)

    def _number(self, entry: tuple[int, int]) -> int:
        """The place of a size in the table."""
        number = self._numbers.setdefault(entry, len(self.table))
        if number == len(self.table):
            self.table.append(entry)
        return number

    def _events(self, table: Sequence[int], emptied: frozenset[int] = frozenset()) -> Iterator[tuple[int, int] | str]:
        names = {position: name for name, position in reversed(self.phases)}
        empty: set[int] = set()
        for position, (key, number) in enumerate(zip(self.keys, self.sizes, strict=True)):
            if position in emptied:
                yield EMPTY_CACHE
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


class _MicroStep:
    """One micro-step written down once, with keys that count from 0; every repetition has the same events.

    Attributes:
        keys, sizes: of each phase's events, as a program has them.
        workspaces: of each phase, the storages that only a run's first micro-step allocates, by the event they precede.
        births: how many keys there are.
        left: what is not freed, as (key, storage).
    """

    def __init__(self, recording: Recording, number: Callable[[int], int]) -> None:
        self.keys: dict[Phase, array[int]] = {}
        self.sizes: dict[Phase, array[int]] = {}
        self.workspaces: dict[Phase, list[tuple[int, int]]] = {}
        infos, workspaces = recording.infos, recording.workspaces
        held: dict[Instance, int] = {}
        births = 0
        for phase in (Phase.FORWARD, Phase.BACKWARD):
            keys, sizes = self.keys[phase], self.sizes[phase] = array("i"), array("i")
            made = self.workspaces[phase] = []
            for instance, allocates in unfold(recording, phase):
                if not allocates:
                    key = held.pop(instance, -1)
                    if key >= 0:
                        keys.append(key)
                        sizes.append(-1)
                    continue
                index = instance[0]
                if index in workspaces:
                    made.append((len(keys), index))
                elif infos[index].size_bytes:
                    held[instance] = births
                    keys.append(births)
                    sizes.append(number(index))
                    births += 1
        self.births = births
        self.left = [(key, instance[0]) for instance, key in held.items()]
