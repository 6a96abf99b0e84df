"""The same run for the caching allocator: every storage of load and two steps, in order, as blocks and segments.

The events of a run are written down once as a `Program`; sizes for another batch are filled in when it is played.

Known limits:
    Equal layers are played one by one: a millisecond or more in C, tens of them in Python.
    With gradient accumulation three micro-steps are played at most; more of them could fragment further.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

from memplan.estimate import Phase
from memplan.step import native
from memplan.step.allocator_run import EMPTY_CACHE, FREE_LATER, SYNCHRONIZE, AllocatorReport, Event, PhaseMaxima, replay
from memplan.step.forms import BYTES, Terms
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.run import Run, RunWriter
from memplan.step.unfold import Instance, unfold

_FREE, _FREE_LATER = -1, -2
_SECOND_STREAM = 1 << 30


class Written:
    """Recordings written down, for every program that plays them.

    Attributes:
        table: each size that occurs, as a term and how many of it.
    """

    def __init__(self, terms: Terms) -> None:
        self.table: list[tuple[int, int]] = []
        self._terms = terms
        self._numbers: dict[tuple[int, int], int] = {}
        self._entries = [-1] * len(terms.of)  # of each storage, once it is asked for
        self._micro_steps: dict[int, _MicroStep] = {}

    def micro_step(self, recording: Recording) -> _MicroStep:
        """The events of a recording, which must live as long as this.

        Raises:
            CannotUnfold: folded layers cannot be told apart.
        """
        if id(recording) not in self._micro_steps:
            self._micro_steps[id(recording)] = _MicroStep(recording, self.entry)
        return self._micro_steps[id(recording)]

    def number(self, size: tuple[int, int]) -> int:
        """The place of a size in the table."""
        number = self._numbers.setdefault(size, len(self.table))
        if number == len(self.table):
            self.table.append(size)
        return number

    def entry(self, index: int) -> int:
        """The place in the table of a recorded storage's size."""
        if self._entries[index] < 0:
            self._entries[index] = self.number(self._terms.of[index])
        return self._entries[index]


class Program(RunWriter):
    """The events of a run, with sizes still open.

    Args:
        run: what is played.
        written: its recordings.

    Attributes:
        keys: the storage of each event, numbered from 1; the free of 0 is `EMPTY_CACHE`, its later free `SYNCHRONIZE`.
        sizes: what each event allocates, as an index into `written.table`, for the second stream with `_SECOND_STREAM` added;
            `_FREE` or `_FREE_LATER` for a free.
        phases: names, with the event that each begins at.
        has_second_stream: whether anything is allocated by another CUDA stream than the one that computes.
    """

    def __init__(self, run: Run, written: Written) -> None:
        self.keys, self.sizes = array("i"), array("i")
        self.phases: list[tuple[str, int]] = []
        self.written = written
        self._last_key = run.last_key
        self._lasting: dict[int, int] = {}
        self.write(run)
        self.n_keys = self._last_key + 1
        self.has_second_stream = max(self.sizes, default=0) >= _SECOND_STREAM

    def play(
        self, sizes: Sequence[int], *, expandable_segments: bool = False, capacity_bytes: int | None = None
    ) -> AllocatorReport:
        """Maxima of allocated and reserved memory, or where a run of limited capacity dies.

        Args:
            sizes: bytes of each of the recording's terms.
            expandable_segments: the allocator's mode.
            capacity_bytes: what all segments together may take; None for no limit.
        """
        table = [sizes[term] * weight for term, weight in self.written.table]
        # The C model knows one stream.
        if capacity_bytes is not None or self.has_second_stream or native.library() is None:
            return replay(self._events(table), expandable_segments=expandable_segments, capacity_bytes=capacity_bytes)
        begins = [position for _, position in self.phases]
        segments, figures = native.replay(
            self.keys, self.sizes, table, self.n_keys, begins, expandable_segments=expandable_segments
        )
        phases = tuple(PhaseMaxima(name, *row) for (name, _), row in zip(self.phases, figures, strict=True))
        live, allocated, reserved = (max(row[figure] for row in figures) for figure in range(3))
        return AllocatorReport(live, allocated, reserved, phases, 0, segments)

    def _begin(self, step: int, phase: Phase) -> None:
        self.phases.append((str(phase) if phase is Phase.LOAD else f"{phase} {step}", len(self.keys)))

    def _load(self, key: int, size_bytes: int) -> None:
        self._add(key, size_bytes or None)

    def _enter(self, recording: Recording) -> None:
        self._played = self.written.micro_step(recording)
        self._offset = self._last_key + 1
        self._last_key += self._played.births

    def _play(self, recording: Recording, phase: Phase, made: frozenset[int]) -> None:
        begin = 0
        for position, event in self._played.workspaces[phase] if made else ():
            index = event if event >= 0 else ~event
            if index not in made:
                continue
            self._extend(phase, begin, position)
            if event >= 0:
                self._lasting[index] = self._new_key()
                self.keys.append(self._lasting[index])
                self.sizes.append(self.written.entry(index))
            else:
                self._add(self._lasting.pop(index), None)
            begin = position
        self._extend(phase, begin, len(self._played.keys[phase]))

    def _left(self) -> Iterator[tuple[int, int]]:
        return ((self._offset + key, index) for key, index in self._played.left)

    def _extend(self, phase: Phase, begin: int, end: int) -> None:
        self.keys.extend([key + self._offset for key in self._played.keys[phase][begin:end]])
        self.sizes.extend(self._played.sizes[phase][begin:end])

    def _allocate(self, size_bytes: int, event: OptimizerEvent) -> int:
        key = self._new_key()
        self._add(key, size_bytes)
        return key

    def _empty_cache(self) -> None:
        self._add(EMPTY_CACHE[0], None)

    def _synchronize(self) -> None:
        self.keys.append(SYNCHRONIZE[0])
        self.sizes.append(_FREE_LATER)

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _add(self, key: int, size_bytes: int | None) -> None:
        """An allocation, or a free where the size is None."""
        self.keys.append(key)
        self.sizes.append(_FREE if size_bytes is None else self.written.number((BYTES, size_bytes)))

    def _free(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._add(key, None)

    def _events(self, table: Sequence[int]) -> Iterator[Event]:
        names = {position: name for name, position in reversed(self.phases)}
        empty: set[int] = set()
        for position, (key, number) in enumerate(zip(self.keys, self.sizes, strict=True)):
            if position in names:
                yield from (name for name, begin in self.phases if begin == position)
            if number < 0:
                if key not in empty:
                    yield key, FREE_LATER if number == _FREE_LATER else 0
                continue
            stream, number = divmod(number, _SECOND_STREAM)
            size = table[number]
            if not size:
                empty.add(key)
            elif stream:
                yield key, size, stream
            else:
                yield key, size
        yield from (name for name, begin in self.phases if begin == len(self.keys))


def play(run: Run, *, expandable_segments: bool = False, capacity_bytes: int | None = None) -> AllocatorReport:
    """What the allocator makes of a run as it was recorded (`Program.play`)."""
    terms = Terms(run.micro_steps[0].infos)
    return Program(run, Written(terms)).play(
        terms.recorded(), expandable_segments=expandable_segments, capacity_bytes=capacity_bytes
    )


class _MicroStep:
    """One micro-step written down once, with keys that count from 0; every repetition has the same events.

    Attributes:
        keys, sizes: of each phase's events, as a program has them.
        workspaces: of each phase, the storages that only a run's first micro-steps allocate, or free (the complement), by the
            event they precede.
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
        for phase in (Phase.FORWARD, Phase.BACKWARD) if recording.moment is None else (recording.moment,):
            keys, sizes = self.keys[phase], self.sizes[phase] = array("i"), array("i")
            made = self.workspaces[phase] = []
            for instance, allocates in unfold(recording, phase):
                if not allocates and instance[0] in workspaces:
                    made.append((len(keys), ~instance[0]))
                    continue
                if not allocates:
                    key = held.pop(instance, -1)
                    if key >= 0:
                        keys.append(key)
                        sizes.append(_FREE_LATER if infos[instance[0]].is_reused_later else _FREE)
                    continue
                index = instance[0]
                if index in workspaces:
                    made.append((len(keys), index))
                elif infos[index].size_bytes:
                    held[instance] = births
                    keys.append(births)
                    sizes.append(number(index) + infos[index].stream * _SECOND_STREAM)
                    births += 1
        self.births = births
        self.left = [(key, instance[0]) for instance, key in held.items()]
