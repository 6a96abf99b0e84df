"""The predicted step as a snapshot for PyTorch's memory viewer (pytorch.org/memory_viz).

The analytic run, every layer by itself, is written down with what each storage is; addresses and segments come from the
allocator model, and the file is written as `memplan.trace.viz` writes a trace.

Known limits:
    Loading is known by sizes: its storages are called weights where they stay, and temporaries where they go.
    With gradient accumulation at most three micro-steps of a step are shown.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator

from memplan.errors import UnsupportedError
from memplan.estimate import Component, Phase
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.ports import CannotUnfold
from memplan.step.recording import Recording
from memplan.step.run import Run, RunWriter
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


class _Writer(RunWriter):
    """The run as a trace has it."""

    def __init__(self, run: Run) -> None:
        nothing = Storage(0, 0, (), "", "", "", "", "")
        self.result = TraceResult(storages=[nothing], events=[], marks=[])
        self._temporary = {key for key, size in run.load_events if not size}
        self._loaded: dict[int, int] = {}
        self._lasting: dict[int, int] = {}
        self.write(run)

    def _begin(self, step: int, phase: Phase) -> None:
        self.result.marks.append((len(self.result.events), step, str(phase)))

    def _load(self, key: int, size_bytes: int) -> None:
        if size_bytes:
            component = Component.TEMPORARIES if key in self._temporary else Component.WEIGHTS
            self._loaded[key] = self._born(size_bytes, "load", "model", component, (size_bytes,), "bytes")
        else:
            self._free([self._loaded.pop(key)])

    def _enter(self, recording: Recording) -> None:
        self._held: dict[Instance, int] = {}

    def _born(self, size: int, op: str, module: str, component: Component, shape: tuple[int, ...], dtype: str) -> int:
        number = len(self.result.storages)
        self.result.storages.append(Storage(number, size, shape, dtype, op, module, str(component), module))
        self.result.events.append(number)
        return number

    def _free(self, keys: Iterable[int]) -> None:
        self.result.events.extend(-key for key in keys)

    def _empty_cache(self) -> None:
        self.result.cache_flushes.append(len(self.result.events))

    def _allocate(self, size_bytes: int, event: OptimizerEvent) -> int:
        return self._born(size_bytes, event.label, "optimizer", event.component, (size_bytes,), "bytes")

    def _play(self, recording: Recording, phase: Phase, made: frozenset[int]) -> None:
        for instance, allocates in unfold(recording, phase):
            index, layer = instance
            if not allocates:
                key = self._held.pop(instance, 0)
                if key:
                    self._free([key])
                if index in made:
                    self._free([self._lasting.pop(index)])
                continue
            info = recording.infos[index]
            is_workspace = index in recording.workspaces
            if not info.size_bytes or (is_workspace and index not in made):
                continue
            module = info.module if layer < 0 else f"{info.module} [{layer}]"
            shape = tuple(int(size) for size in info.shape)
            number = self._born(info.size_bytes, info.op, module, info.component, shape, str(info.dtype))
            if is_workspace:
                self._lasting[index] = number
            else:
                self._held[instance] = number

    def _left(self) -> Iterator[tuple[int, int]]:
        return ((key, index) for (index, _), key in self._held.items())
