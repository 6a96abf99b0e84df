"""The walk: load, then two steps of forward, backward and optimizer, with everything that is alive at each moment.

A `Recording` says what one micro-step allocates and frees; here it is played on top of what stays (weights, states),
phase by phase. With gradient accumulation a second one says what a micro-step does that finds gradients: it is played once
a step, since all later ones are alike. Equal layers stand once in the recording with their count: a stretch that repeats is
linear, so its highest moment lies in its first or its last repetition.

Known limits:
    Memory is followed at the level `live`: storages rounded to 512 bytes. Blocks and segments are the allocator's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memplan.estimate import Component, Phase
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.ports import Ledger
from memplan.step.recording import Recording
from memplan.step.tensor import Segment

Alive = Counter[int]


@dataclass(frozen=True, slots=True)
class Resident:
    """What does not come and go within a step, in bytes rounded per storage.

    Attributes:
        loaded: after loading, by component.
        gradients_bytes: of all trained parameters, allocated in backward, freed by `zero_grad`.
        load_transient_bytes: the most that loading needs besides what it leaves.
    """

    loaded: Mapping[Component, int]
    gradients_bytes: int
    load_transient_bytes: int

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


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """One phase of one step.

    Attributes:
        peak_bytes, end_bytes: live bytes at the highest moment and at the end.
        at: the highest moment.
        components: bytes alive at the highest moment, by component; sum to `peak_bytes`.
        storages: storages of the recording alive then, by index, with how many of each.
    """

    peak_bytes: int
    end_bytes: int
    at: Moment
    components: Mapping[Component, int]
    storages: Mapping[int, int]


@dataclass
class Profile:
    """A segment's events summed: net change, highest point within, and where that is."""

    delta_bytes: int
    peak_bytes: int
    peak_index: int


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
        steps: how many steps to walk; the second one is the steady state.
    """

    def __init__(
        self,
        recording: Recording,
        resident: Resident,
        construction: Iterable[OptimizerEvent] = (),
        clipping: Iterable[OptimizerEvent] = (),
        optimizer_events: Iterable[OptimizerEvent] = (),
        following: Recording | None = None,
        steps: int = 2,
    ) -> None:
        self.infos = recording.infos
        self.micro_steps = (recording,) if following is None else (recording, following)
        self.all_named = frozenset().union(*(entry.named for entry in self.micro_steps))
        self.workspaces = recording.workspaces
        self.ledgers = [Ledger(self.infos, entry.ports) for entry in self.micro_steps]
        self.resident = resident
        self.construction = tuple(construction)
        self.clipping = tuple(clipping)
        self.optimizer_events = tuple(optimizer_events)
        self.steps = steps
        self.base: Counter[Component] = Counter(resident.loaded)
        self.alive: Alive = Counter()
        self.live_bytes = resident.loaded_bytes
        self.named: Alive = Counter()
        self.skipped: frozenset[int] = frozenset()
        self.profiles: dict[tuple[int, bool], Profile] = {}

    def run(self) -> Walk:
        """Walk load and all steps."""
        walk = Walk()
        walk.phases.append(self._load())
        for step in range(1, self.steps + 1):
            played: list[list[PhasePeak]] = []
            for recording in self.micro_steps:
                if played:
                    self._next_batch()
                played.append([self._play(recording, step, phase) for phase in (Phase.FORWARD, Phase.BACKWARD)])
            walk.phases += [_highest(alike) for alike in zip(*played, strict=True)]
            walk.phases.append(self._optimize(step))
        return walk

    def _load(self) -> PhasePeak:
        transient = self.resident.load_transient_bytes
        components = Counter(self.base)
        if transient:
            components[Component.TEMPORARIES] += transient
        at = Moment(0, Phase.LOAD, "load", "")
        peak = self.live_bytes + transient
        for event in self.construction:
            self._add(event.component, event.change_bytes)
            if self.live_bytes > peak:
                peak, components = self.live_bytes, Counter(self.base)
        return PhasePeak(peak, self.live_bytes, at, components, {})

    def _play(self, recording: Recording, step: int, phase: Phase) -> PhasePeak:
        is_first = step == 1 and recording is self.micro_steps[0]
        self.skipped = frozenset() if is_first else recording.workspaces
        ledger = self.ledgers[recording is not self.micro_steps[0]]
        peak, where = self.live_bytes, None
        start = Counter(self.alive)
        segments = [segment for segment in recording.segments if segment.phase == phase]
        for position, segment in enumerate(segments):
            profile = self._profile(segment)
            repeats = segment.count
            for repeat in (0, repeats - 1):
                height = self.live_bytes + repeat * profile.delta_bytes + profile.peak_bytes
                if height > peak:
                    peak, where = height, (position, repeat, profile.peak_index)
            self.live_bytes += repeats * profile.delta_bytes
            ledger.play(self.alive, segment, 0, repeats, skipped=self.skipped)
        alive, at = self._situation(ledger, start, segments, where, step, phase)
        components = self._components(alive)
        if phase is Phase.BACKWARD:
            self._settle_gradients()
        else:
            self._forget_named()
        return PhasePeak(peak, self.live_bytes, at, components, alive)

    def _settle_gradients(self) -> None:
        """Parameter gradients leave the recording's books: they are resident until `zero_grad`."""
        total = 0
        for index, count in list(self.alive.items()):
            if self.infos[index].component is Component.GRADIENTS:
                total += count * self.infos[index].size_bytes
                del self.alive[index]
        self.base[Component.GRADIENTS] += total
        held = self.base[Component.GRADIENTS]
        assert held == self.resident.gradients_bytes, (
            f"{held} bytes of gradients, {self.resident.gradients_bytes} expected"
        )

    def _forget_named(self) -> None:
        """Loss and kept outputs of the previous micro-step, whose names have just been bound to the new ones."""
        self.alive.subtract(self.named)
        self.live_bytes -= sum(self.infos[index].size_bytes * count for index, count in self.named.items())
        self.named = Counter()

    def _optimize(self, step: int) -> PhasePeak:
        peak, components, label = self.live_bytes, self._components(self.alive), "optimizer.step"
        storages = dict(self.alive)

        def watch(name: str) -> None:
            nonlocal peak, components, label
            if self.live_bytes > peak:
                peak, components, label = self.live_bytes, self._components(self.alive), name

        for event in self.clipping:
            self._add(Component.TEMPORARIES, event.change_bytes)
            watch(event.label)
        for event in self.optimizer_events:
            if event.once and step > 1:
                continue
            self._add(event.component, event.change_bytes)
            watch(event.label.partition("#")[0])
        self._add(Component.GRADIENTS, -self.base[Component.GRADIENTS])
        end = self.live_bytes
        self._next_batch()
        return PhasePeak(peak, end, Moment(step, Phase.OPTIMIZER_STEP, label, ""), components, storages)

    def _next_batch(self) -> None:
        """The batch gives way to the next one; what the loop's variables name stays until they are bound again."""
        self.named = Counter()
        for index, count in list(self.alive.items()):
            if not count:
                del self.alive[index]
            elif index in self.all_named:
                self.named[index] = count
            elif index not in self.workspaces:
                self.live_bytes -= count * self.infos[index].size_bytes
                del self.alive[index]

    # -- sums -------------------------------------------------------------------------------------------

    def _add(self, component: Component, size_bytes: int) -> None:
        self.base[component] += size_bytes
        self.live_bytes += size_bytes

    def _profile(self, segment: Segment) -> Profile:
        key = id(segment), bool(self.skipped)
        known = self.profiles.get(key)
        if known is not None:
            return known
        height = peak = 0
        peak_index = -1
        infos, skipped = self.infos, self.skipped
        for position, event in enumerate(segment.events):
            if event < 0:
                height -= infos[~event].size_bytes
            elif event not in skipped:
                height += infos[event].size_bytes
                if height > peak:
                    peak, peak_index = height, position
        profile = self.profiles[key] = Profile(height, peak, peak_index)
        return profile

    def _situation(
        self,
        ledger: Ledger,
        start: Alive,
        segments: list[Segment],
        where: tuple[int, int, int] | None,
        step: int,
        phase: Phase,
    ) -> tuple[Alive, Moment]:
        """Storages alive at the highest moment of a phase, and what that moment is."""
        if where is None:
            return start, Moment(step, phase, "start", "")
        position, repeat, index = where
        alive = Counter(start)
        for segment in segments[:position]:
            ledger.play(alive, segment, 0, segment.count, skipped=self.skipped)
        segment = segments[position]
        ledger.play(alive, segment, 0, repeat, skipped=self.skipped)
        until = segment.events[: index + 1]
        ledger.play(alive, segment, repeat, repeat + 1, events=until, skipped=self.skipped)
        info = self.infos[segment.events[index]]
        return alive, Moment(step, phase, info.op, _place(info.module, segment, repeat))

    def _components(self, alive: Alive) -> dict[Component, int]:
        total = Counter(self.base)
        for index, count in alive.items():
            if count:
                info = self.infos[index]
                total[info.component] += count * info.size_bytes
        return {component: size for component, size in total.items() if size}


def _highest(phases: Sequence[PhasePeak]) -> PhasePeak:
    """The same phase of every micro-step as one: the highest moment, and the end of the last."""
    return replace(max(phases, key=lambda phase: phase.peak_bytes), end_bytes=phases[-1].end_bytes)


def _place(module: str, segment: Segment, repeat: int) -> str:
    """`module` with the number of the layer that repetition `repeat` of an executed layer stands for."""
    layer = segment.layer
    if segment.count == 1 or not module.startswith(layer):
        return module
    path, _, first = layer.rpartition(".")
    offset = repeat if segment.phase == Phase.FORWARD else segment.count - 1 - repeat
    return f"{path}.{int(first) + offset}{module[len(layer) :]}"
