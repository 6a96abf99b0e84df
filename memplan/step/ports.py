"""Which storage an event of a folded layer means: what one layer hands to the next is recorded under two names.

A run of equal layers is executed once. The input of the executed layer stands for what the layer below made, and its result
for what the layer above takes; likewise for the gradient on the way back. Only the layer at the end of the run meets the
storage that comes from outside.

Known limits:
    Layers hand one gradient down (`gradient_ports` refuses others).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from memplan.estimate import Component, Phase
from memplan.step.tensor import Segment, StorageInfo


class CannotUnfold(Exception):  # noqa: N818 - a signal to record every layer
    """The recording hands more than one tensor from layer to layer."""


def gradient_ports(segment: Segment, infos: Sequence[StorageInfo], results: Mapping[int, int]) -> dict[int, int]:
    """What the layer above hands down, and under which name this one hands it on.

    Args:
        segment: a repeated stretch of backward.
        infos: storages by index.
        results: the ports of the way forward, the executed layer's input to its result.

    Raises:
        CannotUnfold: more than one tensor is handed down.
    """
    made = {event for event in segment.events if event >= 0}
    freed = {~event for event in segment.events if event < 0}
    given = [index for index in freed - made if infos[index].in_backward and index not in results]
    stays = (Component.GRADIENTS, Component.OPTIMIZER_STATES)
    kept = [index for index in made - freed if infos[index].component not in stays]
    # None at all where every layer adds to the same gradient in place.
    if len(given) != len(kept) or len(given) > 1:
        raise CannotUnfold
    return dict(zip(given, kept, strict=True))


class Ledger:
    """Counts what is alive of each storage while segments of one recording are played.

    Args:
        infos: storages by index.
        ports: the recording's ports.
    """

    def __init__(self, infos: Sequence[StorageInfo], ports: Sequence[tuple[int, int]]) -> None:
        self.infos = infos
        self.results = dict(ports)
        self._renamed: dict[int, dict[int, tuple[int, int]]] = {}

    def play(
        self,
        alive: Counter[int],
        segment: Segment,
        start: int,
        stop: int,
        *,
        events: Sequence[int] | None = None,
        skipped: frozenset[int] = frozenset(),
    ) -> None:
        """Add repetitions `start` to `stop` of `segment` to `alive`; only `events` of them where given.

        Of `skipped` storages nothing happens.
        """
        repeats = stop - start
        renamed = self._names(segment) if segment.count > 1 else {}
        for event in segment.events if events is None else events:
            if event >= 0:
                if event not in skipped:
                    alive[event] += repeats
                continue
            index = ~event
            if index in skipped:
                continue
            name, outside = renamed.get(index, (index, -1))
            own = int(start <= outside < stop)
            alive[index] -= own
            alive[name] -= repeats - own

    def _names(self, segment: Segment) -> dict[int, tuple[int, int]]:
        """For each port that `segment` frees: its name inside the run, and the repetition that meets the outside."""
        known = self._renamed.get(id(segment))
        if known is not None:
            return known
        forward = segment.phase != Phase.BACKWARD
        bottom = 0 if forward else segment.count - 1
        names = {index: (result, bottom) for index, result in self.results.items()}
        if not forward:
            try:
                handed = gradient_ports(segment, self.infos, self.results)
            except CannotUnfold:
                handed = {}
            names |= {index: (name, 0) for index, name in handed.items()}
        self._renamed[id(segment)] = names
        return names
