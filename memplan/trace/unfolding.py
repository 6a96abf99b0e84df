"""Repeats the events of one layer: two traces whose depths differ by one make a trace of any greater depth.

An event is compared without the number of its layer: a birth by op, module, name, dtype and size, a death by which of
the storages alike it ends (the oldest or the newest, the second oldest, ...). See `memplan.trace.depth`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from memplan.trace.result import Storage, TraceResult

_LAYER = re.compile(r"((?:(?<=\.)|^)(?:layers|layer|h|block|blocks)\.)(\d+)(?=\.|$)")
# How many events must agree after an insertion, and after a storage whose size alone depends on the depth.
_WINDOW, _AFTER_RESIZED = 24, 3
# How many of the former may be of another size.
_RESIZED_BETWEEN = 2
_NEWEST = 2

Kind = tuple[str, str, str, str]


class LayersDifferError(Exception):
    """One more layer does not add what repeats what is there."""


@dataclass(frozen=True, slots=True)
class Birth:
    """A storage is allocated; `sample` is such a storage."""

    kind: Kind
    dtype: str
    component: str
    size_bytes: int
    sample: Storage

    @property
    def key(self) -> Any:
        """What makes two births alike."""
        return self.kind, self.dtype, self.component, self.size_bytes


@dataclass(frozen=True, slots=True)
class Death:
    """A storage is freed: which group of its kind, and which of the group; negative places count from the newest."""

    kind: Kind
    group: int
    member: int

    @property
    def key(self) -> Any:
        """What makes two deaths alike."""
        return self.kind, self.group, self.member


@dataclass(frozen=True, slots=True)
class Flush:
    """`torch.cuda.empty_cache()`."""

    key: Any = "flush"


Step = Birth | Death | Flush


class _Alive:
    """What is alive, by kind, in groups of storages that were born one right after another."""

    def __init__(self) -> None:
        self.groups: dict[Kind, list[list[int]]] = {}
        self.last: Kind | None = None

    def born(self, kind: Kind, storage_id: int) -> None:
        groups = self.groups.setdefault(kind, [])
        if self.last != kind or not groups:
            groups.append([])
        groups[-1].append(storage_id)
        self.last = kind

    def place(self, kind: Kind, storage_id: int) -> Death:
        groups = self.groups[kind]
        group = next(index for index, members in enumerate(groups) if storage_id in members)
        member = groups[group].index(storage_id)
        return Death(kind, _nearer_end(group, len(groups)), _nearer_end(member, len(groups[group])))

    def died(self, death: Death) -> int:
        """Takes the storage out that `death` means, and says which it is."""
        groups = self.groups.get(death.kind, [])
        try:
            storage_id = groups[death.group].pop(death.member)
        except IndexError:
            raise LayersDifferError(f"{death.kind[0]} frees what is not there") from None
        if not groups[death.group]:
            del groups[death.group]
            self.last = None if self.last == death.kind else self.last
        return storage_id


def _nearer_end(index: int, length: int) -> int:
    # What a layer frees is mostly among the newest; a rule by halves would change its mind with the depth.
    from_newest = length - 1 - index
    return index - length if from_newest <= _NEWEST or from_newest < index else index


def _plain(path: str) -> str:
    return _LAYER.sub(r"\1*", path)


def _kind(storage: Storage) -> Kind:
    module, name = _plain(storage.module), _plain(storage.name)
    in_layer = module != storage.module or name != storage.name
    # Outside layers a size may depend on how many there are.
    return storage.op, module, name, f"{storage.dtype} {storage.size_bytes}" if in_layer else storage.dtype


def _in_order_of_birth(events: list[int], start: int, flushes: set[int]) -> list[int]:
    """Deaths with nothing between them in the order of the births: autocast clears its cache in an order of addresses.

    What is free after them is the same in any order, to the allocator as well.
    """
    found: list[int] = []
    run: list[int] = []
    for index, event in enumerate(events, start):
        if event > 0 or index in flushes:
            found += sorted(run, reverse=True)
            run = []
        (found if event > 0 else run).append(event)
    return found + sorted(run, reverse=True)


def _steps(result: TraceResult) -> list[list[Step]]:
    """The events of each phase."""
    alive = _Alive()
    flushes = set(result.cache_flushes)
    bounds = [index for index, _, _ in result.marks]
    found: list[list[Step]] = []
    for start, end in pairwise([*bounds, len(result.events)]):
        steps: list[Step] = []
        alive.last = None
        for index, event in enumerate(_in_order_of_birth(result.events[start:end], start, flushes), start):
            if index in flushes:
                steps.append(Flush())
            storage = result.storages[abs(event)]
            kind = _kind(storage)
            if event > 0:
                alive.born(kind, storage.id)
                steps.append(Birth(kind, storage.dtype, storage.component, storage.size_bytes, storage))
            else:
                death = alive.place(kind, storage.id)
                alive.died(death)
                steps.append(death)
        if end == len(result.events) and end in flushes:
            steps.append(Flush())
        found.append(steps)
    return found


def deepen(
    low: TraceResult, high: TraceResult, low_depth: int, depth: int, *, expected: TraceResult | None = None
) -> TraceResult:
    """The trace at `depth` layers.

    Args:
        low: a trace of `low_depth` layers.
        high: the same with one layer more.
        low_depth: depth of `low`.
        depth: the depth wanted.
        expected: a trace at `depth`, with which every event must agree.

    Raises:
        LayersDifferError: the difference of the two is not one repeated layer, or not what `expected` shows.
    """
    more = depth - low_depth
    phases = [(step, phase) for _, step, phase in low.marks]
    if phases != [(step, phase) for _, step, phase in high.marks]:
        raise LayersDifferError("the phases differ with the depth")
    wanted = _steps(expected) if expected is not None else None
    alive = _Alive()
    storages, events = [low.storages[0]], list[int]()
    marks: list[tuple[int, int, str]] = []
    flushes: list[int] = []
    for number, (shallow, deeper) in enumerate(zip(_steps(low), _steps(high), strict=True)):
        step, phase = phases[number]
        marks.append((len(events), step, phase))
        alive.last = None
        made = list(_repeated(shallow, deeper, more, descending=phase == "backward"))
        if wanted is not None and [entry.key for entry in made] != [entry.key for entry in wanted[number]]:
            raise LayersDifferError(f"{phase} of step {step} does not grow alike from layer to layer")
        for entry in made:
            if isinstance(entry, Flush):
                flushes.append(len(events))
            elif isinstance(entry, Birth):
                storage = replace(entry.sample, id=len(storages))
                storages.append(storage)
                alive.born(entry.kind, storage.id)
                events.append(storage.id)
            else:
                events.append(-alive.died(entry))

    def line(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
        return {key: first.get(key, 0) + (second[key] - first.get(key, 0)) * more for key in second}

    result = TraceResult(
        storages=storages,
        events=events,
        marks=marks,
        cache_flushes=flushes,
        parameters=line(low.parameters, high.parameters),
        host_bytes=low.host_bytes + (high.host_bytes - low.host_bytes) * more,
        host_copies_bytes=low.host_copies_bytes + (high.host_copies_bytes - low.host_copies_bytes) * more,
        guesses=line(low.guesses, high.guesses),
        attention=line(low.attention, high.attention),
        notes=list(high.notes),
        versions=dict(high.versions),
        seconds=dict(high.seconds),
        op_calls=line(low.op_calls, high.op_calls),
    )
    if expected is not None and (result.parameters, result.host_bytes) != (expected.parameters, expected.host_bytes):
        raise LayersDifferError("parameters do not grow alike from layer to layer")
    return result


def _repeated(low: list[Step], high: list[Step], more: int, *, descending: bool) -> Iterator[Step]:
    """The steps of `low` with what `high` has beyond it, `more` times."""
    pieces = list(_aligned([step.key for step in low], [step.key for step in high]))
    numbered = _numbers(high, pieces, more, descending=descending)
    for begin, end, kind in pieces:
        if kind == "more":
            for copy in range(more):
                shift = more - 1 - copy if descending else copy
                yield from (_shifted(step, shift) for step in high[begin:end])
            continue
        for index in range(begin, end):
            step = _shifted(high[index], numbered[index])
            if kind != "same" and isinstance(step, Birth):
                step = _resized(low[int(kind)], step, more)
            yield step


def _aligned(low: list[Any], high: list[Any]) -> Iterator[tuple[int, int, str]]:
    """Pieces of `high`: `same` as in `low`, `more` than there, or the place in `low` of a storage of another size."""
    i = j = 0
    while j < len(high):
        begin = j
        while i < len(low) and j < len(high) and low[i] == high[j]:
            i, j = i + 1, j + 1
        if j > begin:
            yield begin, j, "same"
        if j == len(high):
            break
        length = _inserted(low, high, i, j)
        if length:
            yield j, j + length, "more"
            j += length
        elif _is_resized(low[i : i + 1 + _AFTER_RESIZED], high[j : j + 1 + _AFTER_RESIZED]):
            yield j, j + 1, str(i)
            i, j = i + 1, j + 1
        else:
            raise LayersDifferError(f"{high[j]} does not repeat what stands before it")
    if i < len(low):
        raise LayersDifferError("a deeper model does less")


def _inserted(low: list[Any], high: list[Any], i: int, j: int) -> int:
    """How many steps `high` has at `j` that repeat what stands before them and are not in `low` at `i`; 0 for none."""
    best, found = 0, 0
    for length in range(1, min(j, len(high) - j) + 1):
        if high[j + length - 1] != high[j - 1] or high[j : j + length] != high[j - length : j]:
            continue
        after, there = high[j + length : j + length + _WINDOW], low[i : i + _WINDOW]
        agreement = _agreement(after, there)
        if agreement > best:
            best, found = agreement, length
        if agreement == _WINDOW:
            break
    return found


def _is_resized(low: list[Any], high: list[Any]) -> bool:
    """Whether the first of each is the same storage in another size, and the others are the same."""
    return len(low) == len(high) and low[1:] == high[1:] and len(low[0]) == 4 and low[0][:-1] == high[0][:-1]


def _sizeless(key: Any) -> Any:
    return key[:-1] if len(key) == 4 else key


def _agreement(after: list[Any], there: list[Any]) -> int:
    """How many steps agree until the next insertion comes; the whole window where none does."""
    resized = 0
    for same, (one, other) in enumerate(zip(after, there, strict=False)):
        resized += one != other
        if _sizeless(one) != _sizeless(other) or resized > _RESIZED_BETWEEN:
            return same
    return _WINDOW if len(after) == len(there) else min(len(after), len(there))


def _numbers(high: list[Step], pieces: list[tuple[int, int, str]], more: int, *, descending: bool) -> list[int]:
    """How far each step's layer number moves: layers beyond the repeated ones stand `more - 1` further on."""
    shifts = [0] * len(high)
    for begin, end, kind in pieces:
        if kind != "more":
            continue
        lowest = min((number for step in high[begin:end] if (number := _number(step)) is not None), default=None)
        if lowest is None:
            continue
        for index in range(begin - 1, -1, -1) if descending else range(end, len(high)):
            number = _number(high[index])
            if number is not None and number < lowest:
                break
            shifts[index] = more - 1
    return shifts


def _number(step: Step) -> int | None:
    if not isinstance(step, Birth):
        return None
    match = _LAYER.search(step.sample.name or step.sample.module) or _LAYER.search(step.sample.module)
    return int(match[2]) if match else None


def _shifted(step: Step, shift: int) -> Step:
    if not shift or not isinstance(step, Birth):
        return step

    def moved(path: str) -> str:
        return _LAYER.sub(lambda match: f"{match[1]}{int(match[2]) + shift}", path)

    sample = step.sample
    return replace(step, sample=replace(sample, module=moved(sample.module), name=moved(sample.name)))


def _resized(low: Step, high: Birth, more: int) -> Birth:
    """A storage whose size is a line in the depth."""
    assert isinstance(low, Birth)
    size = low.size_bytes + (high.size_bytes - low.size_bytes) * more
    first, second = low.sample.shape, high.sample.shape
    shape = (
        tuple(a + (b - a) * more for a, b in zip(first, second, strict=True)) if len(first) == len(second) else second
    )
    return replace(high, size_bytes=size, sample=replace(high.sample, size_bytes=size, shape=shape))
