"""A run in the order of its events: load, the optimizer's construction, then steps of micro-steps and update.

`RunWriter` walks the order once for everybody who writes a run down: as sizes for the allocator (`memplan.step.replay`), or
with the names of all storages (`memplan.interop.memory_viz`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memplan.estimate import Component, Phase
from memplan.step.allocator_run import EMPTY_CACHE
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording


@dataclass(frozen=True)
class Run:
    """What is played.

    Attributes:
        load_events: (key, bytes) of each allocation and (key, 0) of each free while loading; `EMPTY_CACHE`.
        last_key: the highest key in them.
        micro_steps: the recordings of one step's micro-steps in order; equal layers are played one by one.
        construction: states that the optimizer makes when it is constructed.
        clipping, optimizer_events: what clipping and the optimizer allocate and free.
        moments: what happens after each step, in order.
        merging: what merging the adapter borrows after the last step; None where it is not merged.
        steps: how many steps.
        opening: the run's first micro-step where it goes otherwise than the first of `micro_steps`.
        empties_cache: whether `torch.cuda.empty_cache()` is called after each update, with the gradients still there.
        empties_cache_first: whether it is called before each micro-step.
    """

    load_events: Sequence[tuple[int, int]]
    last_key: int
    micro_steps: Sequence[Recording]
    construction: Sequence[OptimizerEvent]
    clipping: Sequence[OptimizerEvent]
    optimizer_events: Sequence[OptimizerEvent]
    steps: int = 2
    empties_cache: bool = False
    empties_cache_first: bool = False
    moments: Sequence[Recording] = ()
    merging: Sequence[OptimizerEvent] | None = None
    opening: Recording | None = None


class RunWriter(ABC):
    """Writes a run down; the keys of storages are the writer's own."""

    def write(self, run: Run) -> None:
        """Every event, in order."""
        self._begin(1, Phase.LOAD)
        for key, size in run.load_events:
            if (key, size) == EMPTY_CACHE:
                self._empty_cache()
            else:
                self._load(key, size)
        self._optimizer(run.construction, 1)
        named: list[int] = []
        outlived: list[int] = []
        for step in range(1, run.steps + 1):
            gradients: list[int] = []
            batch: list[int] = []
            for place, usual in enumerate(run.micro_steps):
                recording = run.opening if run.opening is not None and step == 1 and not place else usual
                made = recording.lasting((step - 1) * len(run.micro_steps) + place + 1)
                self._enter(recording)
                for phase in (Phase.FORWARD, Phase.BACKWARD):
                    self._begin(step, phase)
                    if phase is Phase.FORWARD and run.empties_cache_first:
                        self._empty_cache()
                    if phase is Phase.BACKWARD:
                        self._free(outlived)
                        outlived = []
                    self._play(recording, phase, made)
                    if phase is Phase.FORWARD:
                        self._free(named)
                        named = []
                if recording.forgets_at is not None:
                    self._synchronize()
                for key, index in self._left():
                    is_gradient = recording.infos[index].component is Component.GRADIENTS
                    kept = outlived if index in recording.outlived else batch
                    (gradients if is_gradient else named if index in recording.named else kept).append(key)
                if place < len(run.micro_steps) - 1:
                    self._free(batch)
                    batch = []
            self._begin(step, Phase.OPTIMIZER_STEP)
            self._optimizer(run.clipping, step)
            self._optimizer(run.optimizer_events, step)
            if run.empties_cache and step < run.steps:
                self._empty_cache()
            # zero_grad(set_to_none=True), then the batch gives way to the next one.
            self._free(gradients)
            for moment in run.moments:
                self._moment(moment, step)
            if step == run.steps and run.merging is not None:
                self._begin(step, Phase.MERGE)
                self._optimizer(run.merging, step)
            self._free(batch)

    def _synchronize(self) -> None:  # noqa: B027 - of no account where streams are not told apart
        """All streams' work is done."""

    def _moment(self, recording: Recording, step: int) -> None:
        """A phase beside the step, which leaves nothing."""
        assert recording.moment is not None
        self._enter(recording)
        self._begin(step, recording.moment)
        self._play(recording, recording.moment, frozenset())
        if recording.empties_cache:
            self._empty_cache()

    def _optimizer(self, events: Iterable[OptimizerEvent], step: int) -> None:
        alive: dict[str, list[int]] = {}
        for event in events:
            if event.loaded or (event.once and step > 1):
                continue
            if not event.allocates:
                self._free(alive.pop(event.label))
                continue
            made = alive.setdefault(event.label, [])
            made += [self._allocate(size, event) for size, count in event.blocks for _ in range(count)]

    @abstractmethod
    def _begin(self, step: int, phase: Phase) -> None:
        """A phase begins."""

    @abstractmethod
    def _load(self, key: int, size_bytes: int) -> None:
        """An allocation of loading, or a free where the size is 0."""

    @abstractmethod
    def _enter(self, recording: Recording) -> None:
        """A micro-step begins: nothing of it is alive."""

    @abstractmethod
    def _play(self, recording: Recording, phase: Phase, made: frozenset[int]) -> None:
        """One phase of the micro-step; of its workspaces those in `made` are allocated, and stay until they are replaced."""

    @abstractmethod
    def _left(self) -> Iterable[tuple[int, int]]:
        """What the micro-step did not free, as (key, index of the storage in its recording)."""

    @abstractmethod
    def _allocate(self, size_bytes: int, event: OptimizerEvent) -> int:
        """A block of the optimizer's; its key."""

    @abstractmethod
    def _free(self, keys: Iterable[int]) -> None:
        """Frees, in order."""

    @abstractmethod
    def _empty_cache(self) -> None:
        """`torch.cuda.empty_cache()`."""
