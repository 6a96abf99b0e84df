"""What a trace gives back: events, storages, and their sums by phase and component. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from memplan.step.allocator_run import EMPTY_CACHE, FREE_LATER, SYNCHRONIZE
from memplan.step.allocator_run import Event as AllocatorEvent
from memplan.units import round_to_block


@dataclass(frozen=True, slots=True)
class TraceOp:
    """One op that allocated: its name and the path of the module that ran it (or whose gradient it computes)."""

    name: str
    module: str


@dataclass(frozen=True, slots=True)
class Storage:
    """One allocation from birth to death. `size_bytes` is what was asked for, before rounding to 512."""

    id: int
    size_bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    module: str
    component: str
    name: str

    @property
    def block_bytes(self) -> int:
        """Bytes in the allocator: `size_bytes` rounded up to a multiple of 512."""
        return round_to_block(self.size_bytes)


@dataclass(frozen=True, slots=True)
class Event:
    """One birth or death, in program order, with the live bytes after it."""

    alloc: bool
    storage: Storage
    step: int
    phase: str
    live_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseSummary:
    """One phase of one step; all bytes are live storages rounded to 512.

    Attributes:
        peak_bytes: the most that was alive at one moment.
        end_bytes: what is alive when the phase ends.
        at: the op and the module at the peak.
        components: what is alive at the peak, by component; the sum is `peak_bytes`.
        end_components: the same at the end of the phase.
    """

    step: int
    phase: str
    peak_bytes: int
    end_bytes: int
    at: TraceOp
    components: dict[str, int]
    end_components: dict[str, int]


@dataclass(frozen=True)
class TraceResult:
    """A whole trace.

    Attributes:
        storages: by id; index 0 is unused.
        events: a storage id for its birth, the negated id for its death, in order.
        marks: (event index, step, phase): from that event on, events belong to the phase.
        cache_flushes: event indices at which `torch.cuda.empty_cache()` was called.
        synchronized: event indices at which the program waited for all CUDA streams.
        second_stream: storages in the memory of another CUDA stream than the one that computes.
        reused_later: storages whose memory waits for another stream once they are freed (`Tensor.record_stream`).
        parameters: number of elements, `total` and `trainable`.
        saved: per step, ids of the storages that the forward pass left alive (saved for backward, or kept).
        host_bytes: CPU memory of paged or offloaded state.
        host_copies_bytes: CPU memory of activations that wait for backward there.
        guesses: call sites whose `.item()` was answered without knowledge, and how often.
        attention: how often each scaled_dot_product_attention backend ran.
        notes: what was treated specially; part of any honest report.
        versions: torch, transformers, peft and bitsandbytes, and which shim made the trace possible.
    """

    storages: list[Storage]
    events: list[int]
    marks: list[tuple[int, int, str]]
    cache_flushes: list[int] = field(default_factory=list)
    synchronized: list[int] = field(default_factory=list)
    second_stream: list[int] = field(default_factory=list)
    reused_later: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    saved: dict[int, list[int]] = field(default_factory=dict)
    host_bytes: int = 0
    host_copies_bytes: int = 0
    guesses: dict[str, int] = field(default_factory=dict)
    attention: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    op_calls: dict[str, int] = field(default_factory=dict)

    def walk(self) -> Iterator[Event]:
        """Every event with its phase and the live bytes after it."""
        live = 0
        marks = iter([*self.marks, (len(self.events) + 1, 0, "")])
        step, phase = 0, "load"
        upcoming = next(marks)
        for index, event in enumerate(self.events):
            while index >= upcoming[0]:
                step, phase = upcoming[1], upcoming[2]
                upcoming = next(marks)
            storage = self.storages[abs(event)]
            live += storage.block_bytes if event > 0 else -storage.block_bytes
            yield Event(event > 0, storage, step, phase, live)

    @cached_property
    def phases(self) -> list[PhaseSummary]:
        """One summary a phase, in order of time."""
        bounds = [*self.marks, (len(self.events), 0, "")]
        alive: dict[int, None] = {}
        live = 0
        summaries = []
        for (start, step, phase), (end, _, _) in pairwise(bounds):
            peak, peak_alive, at = live, dict(alive), TraceOp("", "")
            peak_index = start - 1
            for index in range(start, end):
                event = self.events[index]
                storage = self.storages[abs(event)]
                if event > 0:
                    live += storage.block_bytes
                    alive[event] = None
                    if live > peak:
                        peak, peak_index, at = live, index, TraceOp(storage.op, storage.module)
                else:
                    live -= storage.block_bytes
                    alive.pop(-event)
            if peak_index >= start:
                peak_alive = self._alive_after(peak_alive, start, peak_index)
            summaries.append(
                PhaseSummary(step, phase, peak, live, at, self._components(peak_alive), self._components(alive))
            )
        return summaries

    def _alive_after(self, alive: dict[int, None], start: int, last: int) -> dict[int, None]:
        alive = dict(alive)
        for event in self.events[start : last + 1]:
            if event > 0:
                alive[event] = None
            else:
                alive.pop(-event)
        return alive

    def _components(self, alive: dict[int, None]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for storage_id in alive:
            storage = self.storages[storage_id]
            totals[storage.component] = totals.get(storage.component, 0) + storage.block_bytes
        return dict(sorted(totals.items()))

    def phase(self, step: int, phase: str) -> PhaseSummary:
        """The summary of `phase` in `step`: the one with the highest peak where accumulation repeats it."""
        found = [entry for entry in self.phases if entry.step == step and entry.phase == phase]
        if not found:
            raise KeyError((step, phase))
        return max(found, key=lambda entry: entry.peak_bytes)

    @property
    def merged_phases(self) -> list[PhaseSummary]:
        """Phases that gradient accumulation repeats as one: the highest peak, and the last end."""
        found: dict[tuple[int, str], PhaseSummary] = {}
        for phase in self.phases:
            known = found.get((phase.step, phase.phase), phase)
            higher = phase if phase.peak_bytes > known.peak_bytes else known
            found[phase.step, phase.phase] = replace(higher, end_bytes=phase.end_bytes)
        return list(found.values())

    @property
    def peak(self) -> PhaseSummary:
        """The phase that holds the peak of the run."""
        return max(self.phases, key=lambda entry: entry.peak_bytes)

    def saved_storages(self, step: int) -> list[Storage]:
        """What the forward pass of `step` left alive beyond the state: saved for backward, or kept by the program."""
        return [self.storages[storage_id] for storage_id in self.saved.get(step, [])]

    def allocator_events(self) -> Iterator[AllocatorEvent]:
        """The input of `memplan.step.allocator_run.replay`: phase marks, births and deaths of storages by their ids."""
        marks: dict[int, list[AllocatorEvent]] = {}
        for index in self.synchronized:
            marks.setdefault(index, []).append(SYNCHRONIZE)
        for index in self.cache_flushes:
            marks.setdefault(index, []).append(EMPTY_CACHE)
        for index, step, phase in self.marks:
            marks.setdefault(index, []).append(f"{phase}{step}")
        second, later = set(self.second_stream), set(self.reused_later)
        for index, event in enumerate(self.events):
            yield from marks.get(index, ())
            if event < 0:
                yield -event, FREE_LATER if -event in later else 0
            elif event in second:
                yield event, self.storages[event].size_bytes, 1
            else:
                yield event, self.storages[event].size_bytes

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(
            {
                "storages": [
                    [s.size_bytes, list(s.shape), s.dtype, s.op, s.module, s.component, s.name] for s in self.storages
                ],
                **{key: getattr(self, key) for key in _PLAIN},
                "saved": {str(step): ids for step, ids in self.saved.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> TraceResult:
        """The result that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        storages = [
            Storage(index, size, tuple(shape), dtype, op, module, component, name)
            for index, (size, shape, dtype, op, module, component, name) in enumerate(data.pop("storages"))
        ]
        data["marks"] = [(index, step, phase) for index, step, phase in data["marks"]]
        data["saved"] = {int(step): ids for step, ids in data["saved"].items()}
        return cls(storages=storages, **data)


_PLAIN = (
    "events", "marks", "cache_flushes", "synchronized", "second_stream", "reused_later", "parameters", "host_bytes",
    "host_copies_bytes", "guesses", "attention", "notes", "versions",
    "seconds", "op_calls",
)  # fmt: skip
