"""A folded recording played layer by layer: the same events with an instance of each storage for each layer.

Equal layers are executed once and recorded with their count. The allocator needs every layer by itself, so here each
repetition gets storages of its own. What one layer hands to the next is recorded under two names, the input of the executed
layer and its result; `ports` says which belong together.

Known limits:
    Layers hand one gradient down. A recording that does not fit this is refused (`CannotUnfold`), and the caller
    records every layer instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.estimate import Phase
from memplan.step.ports import CannotUnfold, gradient_ports
from memplan.step.recording import Recording
from memplan.step.tensor import Segment, StorageInfo

# (storage index, layer number) names one storage; the number is -1 outside folded layers.
Instance = tuple[int, int]
Change = tuple[Instance, bool]


def unfold(recording: Recording, phase: Phase) -> Iterator[Change]:
    """(storage, allocated) for every event of one phase, layer by layer.

    Raises:
        CannotUnfold: what layers hand to each other cannot be told apart.
    """
    infos = recording.infos
    results = dict(recording.ports)
    for segment in recording.segments:
        if segment.phase != phase:
            continue
        if segment.count == 1:
            yield from _single(segment, infos)
        else:
            yield from _repeated(segment, infos, results)


def _single(segment: Segment, infos: list[StorageInfo]) -> Iterator[Change]:
    """Outside repeated layers: a port stands for its last layer, anything else from a layer for all of them in turn."""
    taken: dict[int, int] = {}
    for event in segment.events:
        index = event if event >= 0 else ~event
        info = infos[index]
        if info.repeats == 1:
            yield (index, -1), event >= 0
        elif info.is_port:
            yield (index, _last_layer(info)), False
        else:
            layer = taken.get(index, 0)
            taken[index] = layer + 1
            yield (index, layer), False


def _last_layer(info: StorageInfo) -> int:
    """The layer whose instance of a port leaves the run: the last one forward, the first one backward."""
    return 0 if info.in_backward else info.repeats - 1


def _repeated(segment: Segment, infos: list[StorageInfo], results: dict[int, int]) -> Iterator[Change]:
    forward = segment.phase != Phase.BACKWARD
    handed = {} if forward else gradient_ports(segment, infos, results)
    order = range(segment.count) if forward else range(segment.count - 1, -1, -1)
    first = next(iter(order))
    for layer in order:
        for event in segment.events:
            index = event if event >= 0 else ~event
            if event >= 0:
                yield (index, layer), True
            elif index in results:
                yield ((results[index], layer - 1) if layer else (index, _outside(infos[index]))), False
            elif index in handed:
                yield ((handed[index], layer + 1) if layer != first else (index, _outside(infos[index]))), False
            elif infos[index].repeats == segment.count:
                yield (index, layer), False
            else:
                raise CannotUnfold


def _outside(info: StorageInfo) -> int:
    """The instance that enters a run from outside: a plain storage, or the port of the run before."""
    return -1 if info.repeats == 1 else _last_layer(info)
