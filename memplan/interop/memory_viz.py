"""The predicted step as a snapshot for PyTorch's memory viewer (pytorch.org/memory_viz).

The analytic run, every layer by itself, is written down with what each storage is; addresses and segments come from the
allocator model, and the file is written as `memplan.trace.viz` writes a trace.

Known limits:
    Loading is known by sizes: its storages are called weights where they stay, and temporaries where they go.
    With gradient accumulation at most three micro-steps of a step are shown.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable

from memplan.errors import UnsupportedError
from memplan.estimate import Component, Phase
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.allocator import EMPTY_CACHE
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.ports import CannotUnfold
from memplan.step.recording import Recording
from memplan.step.replay import Run
from memplan.step.unfold import Instance, unfold
from memplan.trace.result import Storage, TraceResult
from memplan.trace.viz import snapshot
from memplan.training_step import recordings, run_of
from memplan.unsupported import unsupported_parts

_PICKLE_PROTOCOL = 4  # the viewer reads 2 to 4


def snapshot_bytes(recipe: Recipe) -> bytes:
    """The snapshot of a recipe's predicted step, pickled.

    Raises:
        UnsupportedError: the step is not walked; there is nothing to show.
        InputError: the recipe is wrong.
    """
    resolved = resolve(recipe)
    data = snapshot(predicted(recipe), expandable_segments=bool(resolved.values["expandable_segments"]))
    return pickle.dumps(data, protocol=_PICKLE_PROTOCOL)


def predicted(recipe: Recipe) -> TraceResult:
    """The recipe's load and two steps as a trace has them: storages with their names, births and deaths in order.

    Raises:
        UnsupportedError: the step is not walked.
    """
    resolved = resolve(recipe)
    prepared = prepare(resolved)
    unsupported = unsupported_parts(resolved, prepared)
    if unsupported.step:
        raise UnsupportedError(
            f"no step to show: {unsupported.texts[0]}", hint="`memplan trace --memory-viz` may show it"
        )
    try:
        return events_of(run_of(recordings(resolved, prepared), resolved, prepared))
    except CannotUnfold:
        return events_of(run_of(recordings(resolved, prepared, fold=False), resolved, prepared))


def events_of(run: Run) -> TraceResult:
    """A run with a name for every storage; the same allocations and frees, in the same order, as the allocator plays."""
    return _Writer(run).result


class _Writer:
    """Mirrors `memplan.step.replay.Program`, which knows sizes alone."""

    def __init__(self, run: Run) -> None:
        nothing = Storage(0, 0, (), "", "", "", "", "")
        self.result = TraceResult(storages=[nothing], events=[], marks=[])
        self._load(run)
        self._optimizer(run.construction, 1)
        named: list[int] = []
        for step in range(1, run.steps + 1):
            gradients: list[int] = []
            batch: list[int] = []
            for place, recording in enumerate(run.micro_steps):
                held: dict[Instance, int] = {}
                for phase in (Phase.FORWARD, Phase.BACKWARD):
                    self.result.marks.append((len(self.result.events), step, str(phase)))
                    self._phase(recording, phase, held, first=step == 1 and not place)
                    if phase is Phase.FORWARD:
                        self._free(named)
                        named = []
                for (index, _), key in held.items():
                    is_gradient = recording.infos[index].component is Component.GRADIENTS
                    (gradients if is_gradient else named if index in recording.named else batch).append(key)
                if place < len(run.micro_steps) - 1:
                    self._free(batch)
                    batch = []
            self.result.marks.append((len(self.result.events), step, str(Phase.OPTIMIZER_STEP)))
            self._optimizer(run.clipping, step)
            self._optimizer(run.optimizer_events, step)
            self._free(gradients)
            self._free(batch)

    def _born(self, size: int, op: str, module: str, component: Component, shape: tuple[int, ...], dtype: str) -> int:
        number = len(self.result.storages)
        self.result.storages.append(Storage(number, size, shape, dtype, op, module, str(component), module))
        self.result.events.append(number)
        return number

    def _free(self, keys: Iterable[int]) -> None:
        self.result.events.extend(-key for key in keys)

    def _load(self, run: Run) -> None:
        self.result.marks.append((0, 1, str(Phase.LOAD)))
        freed = {key for key, size in run.load_events if not size}
        numbers: dict[int, int] = {}
        for key, size in run.load_events:
            if (key, size) == EMPTY_CACHE:
                self.result.cache_flushes.append(len(self.result.events))
            elif size:
                component = Component.TEMPORARIES if key in freed else Component.WEIGHTS
                numbers[key] = self._born(size, "load", "model", component, (size,), "bytes")
            else:
                self._free([numbers.pop(key)])

    def _phase(self, recording: Recording, phase: Phase, held: dict[Instance, int], *, first: bool) -> None:
        for instance, allocates in unfold(recording, phase):
            index, layer = instance
            if not allocates:
                key = held.pop(instance, 0)
                if key:
                    self._free([key])
                continue
            info = recording.infos[index]
            is_workspace = index in recording.workspaces
            if not info.size_bytes or (is_workspace and not first):
                continue
            module = info.module if layer < 0 else f"{info.module} [{layer}]"
            shape = tuple(int(size) for size in info.shape)
            number = self._born(info.size_bytes, info.op, module, info.component, shape, str(info.dtype))
            if not is_workspace:
                held[instance] = number

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
                made += [
                    self._born(size, event.label, "optimizer", event.component, (size,), "bytes") for _ in range(count)
                ]
