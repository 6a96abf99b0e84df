"""What a layer's forward leaves for its backward: the list of a walk beside the list of a trace.

Known limits:
    A storage counts for the module that made it: what a checkpointed layer keeps is its input, which the layer before made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memplan.trace.result import Storage, TraceResult

# The container of layers and the number of one: model.layers.0, encoder.block.0, transformer.h.0.
_LAYER = re.compile(r".*?\.\d+(?=\.|$)")
# The steady state: the first step makes what later ones find.
_STEP = 2


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One storage that is alive when forward ends: bytes rounded to 512, and the op that made it."""

    block_bytes: int
    op: str


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """The saved tensors of one layer in both answers.

    Attributes:
        layer: path of the layer; empty for what lies outside of them all.
        estimate, trace: the largest first.
    """

    layer: str
    estimate: tuple[SavedTensor, ...]
    trace: tuple[SavedTensor, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both lists hold the same entries, whatever the ops are called."""
        return [entry.block_bytes for entry in self.estimate] == [entry.block_bytes for entry in self.trace]

    @property
    def difference(self) -> str:
        """What only one of the two has, in words."""
        mine, theirs = _text(_without(self.estimate, self.trace)), _text(_without(self.trace, self.estimate))
        return f"{self.layer or 'outside of the layers'}: only the estimate saves {mine}, only the trace {theirs}"


def compare_layers(estimate: TraceResult, trace: TraceResult) -> tuple[LayerComparison, ...]:
    """Every layer's saved tensors in the forward of the second step (of its first micro-batch)."""
    mine, theirs = _by_layer(estimate), _by_layer(trace)
    return tuple(LayerComparison(layer, mine.get(layer, ()), theirs.get(layer, ())) for layer in {**theirs, **mine})


def _by_layer(result: TraceResult) -> dict[str, tuple[SavedTensor, ...]]:
    marks = [*result.marks, (len(result.events), 0, "")]
    number = next(index for index, mark in enumerate(marks) if mark[1:] == (_STEP, "forward"))
    alive: dict[int, Storage] = {}
    for event in result.events[marks[number][0] : marks[number + 1][0]]:
        if event > 0:
            alive[event] = result.storages[event]
        else:
            alive.pop(-event, None)  # of an earlier phase otherwise
    found: dict[str, list[SavedTensor]] = {}
    for storage in alive.values():
        match = _LAYER.match(storage.module)
        found.setdefault(match.group() if match else "", []).append(SavedTensor(storage.block_bytes, storage.op))
    return {layer: tuple(sorted(entries, key=lambda entry: -entry.block_bytes)) for layer, entries in found.items()}


def _text(entries: tuple[SavedTensor, ...]) -> str:
    return ", ".join(f"{entry.block_bytes:,} bytes ({entry.op})" for entry in entries) or "nothing"


def _without(entries: tuple[SavedTensor, ...], others: tuple[SavedTensor, ...]) -> tuple[SavedTensor, ...]:
    left = [entry.block_bytes for entry in others]
    found = []
    for entry in entries:
        if entry.block_bytes in left:
            left.remove(entry.block_bytes)
        else:
            found.append(entry)
    return tuple(found)
