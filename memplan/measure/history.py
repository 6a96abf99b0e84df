"""A measured run and the trace of the same run, allocation by allocation.

Both are lists of blocks in order of time, phase by phase. Sizes are compared, not addresses: what one has and the other has
not is listed with the op that the trace knows for it. Small blocks are left out, because counters and generator states
differ without meaning.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from memplan.errors import InputError
from memplan.measure.result import MeasureResult
from memplan.trace.result import Storage, TraceResult
from memplan.units import format_bytes, round_to_block

# As the tests of the trace against the CPU: below this, bookkeeping tensors of a few elements drown the rest.
LEAST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Difference:
    """A stretch where the two lists part.

    Attributes:
        index: position among the phase's measured allocations.
        measured_bytes: blocks that only the measurement has.
        traced: storages that only the trace has.
    """

    index: int
    measured_bytes: tuple[int, ...]
    traced: tuple[Storage, ...]


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """One phase of one step in both.

    Attributes:
        equal: allocations of the same size in the same order.
        measured, traced: how many each has.
        measured_peak_bytes, traced_peak_bytes: of live blocks; the measured one as torch's counter has it.
    """

    step: int
    phase: str
    equal: int
    measured: int
    traced: int
    measured_peak_bytes: int
    traced_peak_bytes: int
    differences: tuple[Difference, ...] = field(default=())


def compare_history(
    measured: MeasureResult, traced: TraceResult, *, least_bytes: int = LEAST_BYTES
) -> list[PhaseComparison]:
    """Every phase after the load, in order; loading is compared by its peak alone.

    Raises:
        InputError: the measurement kept no history, or the two ran different steps.
    """
    if not measured.history:
        raise InputError("the measurement kept no allocator events", hint="memplan measure ... --history FILE")
    mine = _measured_phases(measured, least_bytes)
    theirs = _traced_phases(traced, least_bytes)
    if [key for key, _ in mine] != [key for key, _ in theirs]:
        raise InputError("measurement and trace ran different steps", hint="trace the spec of the measurement")
    peaks = [
        (entry.peak_allocated_bytes, other.peak_bytes)
        for entry, other in zip(measured.phases, traced.phases, strict=True)
    ]
    return [
        _compare(key, blocks, storages, *peak)
        for (key, blocks), (_, storages), peak in zip(mine, theirs, peaks, strict=True)
    ]


_Key = tuple[int, str]


def _measured_phases(result: MeasureResult, least: int) -> list[tuple[_Key, list[int]]]:
    bounds = [entry.first_event for entry in result.phases] + [len(result.history)]
    found = []
    for entry, (start, end) in zip(result.phases, pairwise(bounds), strict=True):
        events = result.history[start:end]
        blocks = [round_to_block(size) for size in events if size >= least]
        found.append(((entry.step, entry.phase), blocks))
    return found


def _traced_phases(result: TraceResult, least: int) -> list[tuple[_Key, list[Storage]]]:
    bounds = [*result.marks, (len(result.events), 0, "")]
    found = []
    for (start, step, phase), (end, _, _) in pairwise(bounds):
        storages = [result.storages[event] for event in result.events[start:end] if event > 0]
        found.append(((step, phase), [storage for storage in storages if storage.size_bytes >= least]))
    return found


def _compare(
    key: _Key, blocks: Sequence[int], storages: Sequence[Storage], measured_peak: int, traced_peak: int
) -> PhaseComparison:
    matcher = difflib.SequenceMatcher(None, blocks, [entry.block_bytes for entry in storages], autojunk=False)
    equal, differences = 0, []
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag == "equal":
            equal += end - start
        else:
            differences.append(Difference(start, tuple(blocks[start:end]), tuple(storages[other_start:other_end])))
    return PhaseComparison(*key, equal, len(blocks), len(storages), measured_peak, traced_peak, tuple(differences))


def history_text(phases: Sequence[PhaseComparison], *, most: int = 12) -> str:
    """A line a phase, and the first differences of each with the trace's op."""
    lines = []
    for entry in phases:
        off = entry.traced_peak_bytes - entry.measured_peak_bytes
        lines.append(
            f"{entry.phase:>15s} {entry.step}  equal {entry.equal} of {entry.measured} measured, {entry.traced} traced"
            f"  peak {format_bytes(entry.measured_peak_bytes)}, the trace {off:+,} bytes"
        )
        for difference in entry.differences[:most]:
            only = ", ".join(format_bytes(size) for size in difference.measured_bytes) or "nothing"
            ops = ", ".join(
                f"{s.op} in {s.module or 'the loss'} ({format_bytes(s.block_bytes)})" for s in difference.traced
            )
            lines.append(f"{'':19s}#{difference.index}: measured {only}; traced {ops or 'nothing'}")
        if len(entry.differences) > most:
            lines.append(f"{'':19s}and {len(entry.differences) - most} more")
    return "\n".join(lines) + "\n"
