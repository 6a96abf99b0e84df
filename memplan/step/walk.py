"""The walk: load, then two steps with what happens after each, and everything that is alive at each moment.

A `Recording` says what one micro-step allocates and frees; here it is played on top of what stays (weights, states),
phase by phase. With gradient accumulation a second one says what a micro-step does that finds gradients: it is played once
a step, since all later ones are alike. Equal layers stand once in the recording with their count: a stretch that repeats is
linear, so its highest moment lies in its first or its last repetition.

What is alive is kept as a sum of terms (`forms`), so one walk answers for every batch and sequence that would record the same
step: `Walker.run` with other sizes is a few dot products.

Known limits:
    Memory is followed at the level `live`: storages rounded to 512 bytes. Blocks and segments are the allocator's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from memplan.estimate import Component, Phase
from memplan.step.forms import BYTES, Form, Terms, added, code, highest, total
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.ports import Ledger
from memplan.step.recording import Recording
from memplan.step.sums import Sums
from memplan.step.tensor import WORKSPACE, Segment

Alive = Counter[int]

# Sums become code once they are asked for this often: compiling costs as much as some ten evaluations.
COMPILED_AFTER = 8


@dataclass(frozen=True, slots=True)
class Resident:
    """What does not come and go within a step, in bytes rounded per storage.

    Attributes:
        loaded: after loading, by component.
        gradients_bytes: of all trained parameters, allocated in backward, freed by `zero_grad`; 0 where the optimizer drops
            each inside backward.
        load_transient_bytes: the most that loading needs besides what it leaves.
        settling_bytes: what loading leaves beyond `loaded` and the first forward gives back, by writing parameters anew.
        adapter_buffers_bytes: of `loaded`, buffers that go with the adapter.
    """

    loaded: Mapping[Component, int]
    gradients_bytes: int
    load_transient_bytes: int
    settling_bytes: int = 0
    adapter_buffers_bytes: int = 0

    @property
    def loaded_bytes(self) -> int:
        """Everything that loading leaves."""
        return sum(self.loaded.values())


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment: which step, phase, op and module."""

    step: int
    phase: Phase
    op: str
    module: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module}" if self.module else self.op


@dataclass(frozen=True, eq=False)
class Candidate:
    """A moment that can be the highest of its phase.

    Attributes:
        form: what is alive.
        at: the moment.
        base: what is alive besides the recording's storages, by component.
        find: storages of the recording alive then, by index; found when asked for.
    """

    form: Form
    at: Moment
    base: Mapping[Component, int]
    find: Callable[[], Alive]

    @cached_property
    def storages(self) -> Alive:
        """Storages of the recording alive then, by index, with how many of each."""
        return self.find()


@dataclass(frozen=True, eq=False)
class PhaseForms:
    """One phase of one step for any sizes: the moments that can be its highest, in order of time, and its end."""

    candidates: tuple[Candidate, ...]
    end: Form


@dataclass(frozen=True, eq=False)
class PhasePeak:
    """One phase of one step.

    Attributes:
        peak_bytes, end_bytes: live bytes at the highest moment and at the end.
    """

    peak_bytes: int
    end_bytes: int
    candidate: Candidate
    terms: Terms
    sizes: Sequence[int]

    @property
    def at(self) -> Moment:
        """The highest moment."""
        return self.candidate.at

    @property
    def storages(self) -> Mapping[int, int]:
        """Storages of the recording alive then, by index, with how many of each."""
        return self.candidate.storages

    @cached_property
    def components(self) -> Mapping[Component, int]:
        """Bytes alive at the highest moment, by component; sum to `peak_bytes`."""
        found = Counter(self.candidate.base)
        infos, of, sizes = self.terms.infos, self.terms.of, self.sizes
        for index, count in self.candidate.storages.items():
            if count:
                term, weight = of[index]
                found[infos[index].component] += count * weight * sizes[term]
        return {component: size for component, size in found.items() if size}


@dataclass
class Walk:
    """The result: every phase in order of time."""

    phases: list[PhasePeak] = field(default_factory=list)

    @property
    def peak(self) -> PhasePeak:
        """The phase with the highest moment; the earlier one of two equals."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)


class Walker:
    """Plays a recording and an optimizer on top of what stays.

    Args:
        recording: the first micro-step.
        resident: what stays.
        construction: states that the optimizer makes when it is constructed, at the end of loading.
        clipping: what gradient clipping borrows, before the optimizer's states exist.
        optimizer_events: the optimizer's states and what its step borrows, in order.
        following: a micro-step that adds to gradients, over the same list of storages as `recording` (`joined`).
        moments: what happens after every step, in order, over the same list.
        merging: what merging the adapter into the base borrows after the last step; None where it is not merged.
        steps: how many steps to walk; the second one is the steady state.
        opening: the run's first micro-step where it goes otherwise than `recording`, over the same list.
        sums: of an earlier walk over the same recordings.
        keeps_merged: whether what was merged stays with its states: hooks of one optimizer for each parameter hold both, and
            the parameter's own graph holds the hooks, which no garbage collection sees.

    Attributes:
        phases: load and every step's phases, for any sizes.
        terms: the sizes they are made of.
    """

    def __init__(
        self,
        recording: Recording,
        resident: Resident,
        construction: Iterable[OptimizerEvent] = (),
        clipping: Iterable[OptimizerEvent] = (),
        optimizer_events: Iterable[OptimizerEvent] = (),
        following: Recording | None = None,
        moments: Sequence[Recording] = (),
        merging: Iterable[OptimizerEvent] | None = None,
        steps: int = 2,
        sums: Sums | None = None,
        opening: Recording | None = None,
        keeps_merged: bool = False,
    ) -> None:
        self.infos = recording.infos
        self.sums = sums or Sums(self.infos)
        self.terms, self.recorded_sizes = self.sums.terms, self.sums.recorded_sizes
        self.micro_steps = (recording,) if following is None else (recording, following)
        self.opening = recording if opening is None else opening
        passes = (self.opening, *self.micro_steps)
        self.all_named = frozenset().union(*(entry.named for entry in passes))
        self.all_outlived = frozenset().union(*(entry.outlived for entry in passes))
        self.workspaces = frozenset().union(*(entry.workspaces for entry in passes))
        self._passes = 0
        self.moments = tuple(moments)
        self.merging = None if merging is None else tuple(merging)
        self.keeps_merged = keeps_merged
        played = (*passes, *self.moments)
        self.ledgers = {id(entry): Ledger(self.infos, entry.ports) for entry in played}
        self.resident = resident
        self.construction = tuple(construction)
        self.clipping = tuple(clipping)
        self.optimizer_events = tuple(optimizer_events)
        self.base: Counter[Component] = Counter(resident.loaded)
        self.alive: Alive = Counter()
        self.live: Form = {BYTES: resident.loaded_bytes}
        self.named: Alive = Counter()
        self.outlived: Alive = Counter()
        self._asked = 0
        self.phases = self._walk(steps)

    def _heights(self, sizes: Sequence[int]) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Every phase's candidates and end, in bytes."""
        self._asked += 1
        if self._asked > COMPILED_AFTER:
            return self._compiled_heights(sizes)
        return tuple(
            (tuple([total(entry.form, sizes) for entry in phase.candidates]), total(phase.end, sizes))
            for phase in self.phases
        )

    @cached_property
    def _compiled_heights(self) -> Callable[[Sequence[int]], tuple[tuple[tuple[int, ...], int], ...]]:
        phases = ", ".join(
            f"(({', '.join(code(entry.form) for entry in phase.candidates)},), {code(phase.end)})"
            for phase in self.phases
        )
        found: Callable[[Sequence[int]], tuple[tuple[tuple[int, ...], int], ...]]
        found = eval(f"lambda s: ({phases},)", {"__builtins__": {}})  # of our own numbers only
        return found

    def peak_bytes(self, sizes: Sequence[int]) -> int:
        """The live peak alone, without saying where it is."""
        self._asked += 1
        if self._asked > COMPILED_AFTER:
            return self._compiled_peak(sizes)
        return max(total(entry.form, sizes) for phase in self.phases for entry in phase.candidates)

    @cached_property
    def _compiled_peak(self) -> Callable[[Sequence[int]], int]:
        forms = [entry.form for phase in self.phases for entry in phase.candidates]
        heights = ", ".join(code(forms[position]) for position in highest(forms, self.recorded_sizes))
        found: Callable[[Sequence[int]], int]
        found = eval(f"lambda s: max(({heights},))", {"__builtins__": {"max": max}})  # of our own numbers only
        return found

    def run(self, sizes: Sequence[int] | None = None) -> Walk:
        """Every phase for the given sizes of the terms; without any, for those that were recorded."""
        if sizes is None:
            sizes = self.recorded_sizes
        walk = Walk()
        for phase, (heights, end) in zip(self.phases, self._heights(sizes), strict=True):
            peak = max(heights)
            walk.phases.append(PhasePeak(peak, end, phase.candidates[heights.index(peak)], self.terms, sizes))
        return walk

    # -- the phases ---------------------------------------------------------------------------------------

    def _walk(self, steps: int) -> tuple[PhaseForms, ...]:
        phases = [self._load()]
        for step in range(1, steps + 1):
            played: list[list[PhaseForms]] = []
            for place, following in enumerate(self.micro_steps):
                recording = self.opening if step == 1 and not place else following
                if played:
                    self._next_batch()
                played.append([self._play(recording, step, phase) for phase in (Phase.FORWARD, Phase.BACKWARD)])
            phases += [_together(alike, self.recorded_sizes) for alike in zip(*played, strict=True)]
            phases.append(self._optimize(step))
            for moment in self.moments:
                assert moment.moment is not None
                phases.append(self._play(moment, step, moment.moment))
            if step == steps and self.merging is not None:
                phases.append(self._merge(step, self.merging))
            self._next_batch()
        return tuple(phases)

    def _load(self) -> PhaseForms:
        transient, settling = self.resident.load_transient_bytes, self.resident.settling_bytes
        at = Moment(0, Phase.LOAD, "load", "")

        def now(transient: int = 0) -> Candidate:
            components = Counter(self.base)
            components[Component.WEIGHTS] += settling
            components[Component.TEMPORARIES] += transient
            return Candidate(added(self.live, {BYTES: settling + transient}), at, components, Counter)

        top = now(transient)
        for event in self.construction:
            self._add(event.component, event.change_bytes)
            if self.live[BYTES] + settling > top.form[BYTES]:
                top = now()
        return PhaseForms((top,), now().form)

    def _play(self, recording: Recording, step: int, phase: Phase) -> PhaseForms:
        self._passes += phase is Phase.FORWARD
        made = recording.lasting(self._passes) if recording.moment is None else frozenset()
        skipped = recording.workspaces - made
        ledger = self.ledgers[id(recording)]
        start, base = Counter(self.alive), Counter(self.base)
        segments = [segment for segment in recording.segments if segment.phase == phase]
        begin, floors, played = dict(self.live), [], []
        until, gone = len(segments), Counter(self.outlived)
        for position, segment in enumerate(segments):
            if recording.forgets_at is not None and segment is recording.segments[recording.forgets_at]:
                self._forget(self.outlived)
                until = position
            profile = self.sums.profile(segment, skipped)
            for repeat in dict.fromkeys((0, segment.count - 1)):
                floors.append(added(self.live, profile.change, repeat))
                played.append((profile, position, repeat))
            self.live = added(self.live, profile.change, segment.count)
            ledger.play(self.alive, segment, 0, segment.count, skipped=skipped)
        alike: dict[int, list[int]] = {}
        for place, (profile, _, _) in enumerate(played):
            alike.setdefault(id(profile), []).append(place)
        # Of stretches that do the same, one on a floor that another's covers cannot be the highest.
        standing = [
            places[kept]
            for places in alike.values()
            for kept in highest((floors[place] for place in places), self.recorded_sizes)
        ]
        tops = [(place, form, index) for place in sorted(standing) for form, index in played[place][0].highest]
        forms = [begin, *(added(floors[place], form) for place, form, _ in tops)]
        candidates = []
        for kept in highest(forms, self.recorded_sizes):
            if not kept:
                candidates.append(Candidate(begin, Moment(step, phase, "start", ""), base, lambda: start))
                continue
            place, _, index = tops[kept - 1]
            _, position, repeat = played[place]
            where = (position, repeat, index)
            at = self._moment(step, phase, segments[position], repeat, index)
            candidates.append(
                Candidate(
                    forms[kept],
                    at,
                    base,
                    lambda where=where, start=start if position < until else start - gone: _situation(  # type: ignore[misc]
                        ledger, start, segments, where, skipped
                    ),
                )
            )
        if phase is Phase.BACKWARD:
            self._settle()
        elif phase is Phase.FORWARD:
            self._forget_named()
        return PhaseForms(tuple(candidates), dict(self.live))

    def _settle(self) -> None:
        """What backward left for good leaves the recording's books: gradients are resident until `zero_grad`, states stay."""
        for component in (Component.GRADIENTS, Component.OPTIMIZER_STATES):
            made: Form = {BYTES: 0}
            for index, count in list(self.alive.items()):
                if self.infos[index].component is component:
                    self.terms.add(made, index, count)
                    del self.alive[index]
            assert made.keys() == {BYTES}, "a parameter's gradient and states have their sizes whatever the batch"
            self.base[component] += made[BYTES]
        held = self.base[Component.GRADIENTS]
        assert held == self.resident.gradients_bytes, (
            f"{held} bytes of gradients, {self.resident.gradients_bytes} expected"
        )

    def _forget_named(self) -> None:
        """Loss and kept outputs of the previous micro-step, whose names have just been bound to the new ones."""
        self._forget(self.named)

    def _forget(self, gone: Alive) -> None:
        self.alive.subtract(gone)
        self.live = added(self.live, self.terms.form(gone), -1)
        gone.clear()

    def _optimize(self, step: int) -> PhaseForms:
        alive = Counter(self.alive)

        def now(label: str) -> Candidate:
            at = Moment(step, Phase.OPTIMIZER_STEP, label.partition("#")[0], "")
            return Candidate(dict(self.live), at, Counter(self.base), lambda: alive)

        updating = (event for event in self.optimizer_events if step == 1 or not event.once)
        top = self._highest(now, "optimizer.step", chain(self.clipping, updating))
        self._add(Component.GRADIENTS, -self.base[Component.GRADIENTS])
        return PhaseForms((top,), dict(self.live))

    def _merge(self, step: int, events: Iterable[OptimizerEvent]) -> PhaseForms:
        """The adapter's layers one by one; then the training's variables go, and with optimizer and scaler the adapter."""
        alive = Counter(self.alive)

        def now(label: str) -> Candidate:
            op, _, module = label.partition(" in ")
            return Candidate(
                dict(self.live),
                Moment(step, Phase.MERGE, op.partition("#")[0], module),
                Counter(self.base),
                lambda: alive,
            )

        own_buffers = self.base[Component.BUFFERS] - self.resident.adapter_buffers_bytes
        top = self._highest(now, "start", events)
        for component in () if self.keeps_merged else (Component.ADAPTERS, Component.OPTIMIZER_STATES):
            self._add(component, -self.base[component])
        self._add(Component.BUFFERS, own_buffers - self.base[Component.BUFFERS])
        # What a gradient scaler keeps on the device goes with it; cuBLAS's workspaces do not.
        stays = {
            index
            for index in self.workspaces
            if self.infos[index].op == WORKSPACE
            or (self.keeps_merged and self.infos[index].component is Component.OPTIMIZER_STATES)
        }
        gone = Counter({index: count for index, count in self.alive.items() if index not in stays})
        return PhaseForms((top,), added(self.live, self.terms.form(gone), -1))

    def _highest(self, now: Callable[[str], Candidate], start: str, events: Iterable[OptimizerEvent]) -> Candidate:
        """The highest moment of `events` in order, `start` before the first of them; the earlier of two equals."""
        top = now(start)
        for event in events:
            self._add(event.component, event.change_bytes)
            if self.live[BYTES] > top.form[BYTES]:
                top = now(event.label)
        return top

    def _next_batch(self) -> None:
        """The batch gives way to the next one; what the loop's variables name stays until they are bound again."""
        self.named, self.outlived = Counter(), Counter()
        for index, count in list(self.alive.items()):
            if not count:
                del self.alive[index]
            elif index in self.all_named:
                self.named[index] = count
            elif index in self.all_outlived:
                self.outlived[index] = count
            elif index not in self.workspaces:
                self.terms.add(self.live, index, -count)
                del self.alive[index]

    # -- sums -------------------------------------------------------------------------------------------

    def _add(self, component: Component, size_bytes: int) -> None:
        self.base[component] += size_bytes
        self.live[BYTES] += size_bytes

    def _moment(self, step: int, phase: Phase, segment: Segment, repeat: int, index: int) -> Moment:
        info = self.infos[segment.events[index]]
        return Moment(step, phase, info.op, _place(info.module, segment, repeat))


def _situation(
    ledger: Ledger, start: Alive, segments: Sequence[Segment], where: tuple[int, int, int], skipped: frozenset[int]
) -> Alive:
    """Storages alive at one moment of a phase: (segment, repetition, event)."""
    position, repeat, index = where
    alive = Counter(start)
    for segment in segments[:position]:
        ledger.play(alive, segment, 0, segment.count, skipped=skipped)
    segment = segments[position]
    ledger.play(alive, segment, 0, repeat, skipped=skipped)
    ledger.play(alive, segment, repeat, repeat + 1, events=segment.events[: index + 1], skipped=skipped)
    return alive


def _together(phases: Sequence[PhaseForms], sizes: Sequence[int]) -> PhaseForms:
    """The same phase of every micro-step as one: the highest moment of all, and the end of the last."""
    if len(phases) == 1:
        return phases[0]
    candidates = [candidate for phase in phases for candidate in phase.candidates]
    kept = highest((candidate.form for candidate in candidates), sizes)
    return PhaseForms(tuple(candidates[position] for position in kept), phases[-1].end)


def _place(module: str, segment: Segment, repeat: int) -> str:
    """`module` with the number of the layer that repetition `repeat` of an executed layer stands for."""
    layer = segment.layer
    path, _, executed = layer.rpartition(".")
    number, _, inside = module[len(path) + 1 :].partition(".")
    if segment.count == 1 or not module.startswith(path + ".") or not number.isdecimal():
        return module
    first, _, last = executed.partition("-")
    offset = repeat if segment.phase != Phase.BACKWARD else segment.count - 1 - repeat
    layers = int(last or first) - int(first) + 1
    return f"{path}.{int(number) + offset * layers}" + (f".{inside}" if inside else "")
