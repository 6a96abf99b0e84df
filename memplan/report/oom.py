"""The report of an explained out-of-memory error, and its JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan.report.tree import Block, Bullets, Column, Facts, Headline, Report, Table
from memplan.units import format_bytes

if TYPE_CHECKING:
    from memplan.oom.candidates import Candidate
    from memplan.oom.explain import Explanation

_WORDS = {
    "fragmentation": "Fragmentation",
    "lack": "Too little memory",
    "limit": "The process's own limit",
    "larger_than_card": "One tensor larger than the card",
    "refused": "The driver refused",
    "other_processes": "Other processes hold the memory",
    "outside_allocator": "Memory ran out outside torch's allocator",
    "unknown": "Not enough is said",
}
_COLUMNS = (
    Column("bytes", "right"),
    Column("when"),
    Column("module", fit="wrap"),
    Column("op", fit="wrap"),
    Column("in numbers", fit="wrap"),
)


def oom_report(found: Explanation, *, top: int = 5) -> Report:
    """Cause, place, tensor, remedies, and what is not certain."""
    message = found.message
    asked = f"{format_bytes(message.requested_bytes)} could not be had" if message.requested_bytes else message.text
    blocks: list[Block] = [Headline(f"{_WORDS[found.diagnosis.cause]}:", asked, "bad")]
    blocks.append(Bullets("Why", found.diagnosis.sentences, "neutral"))
    facts = _facts(found)
    if facts:
        blocks.append(Facts(facts))
    if found.candidates:
        blocks.append(Table(_COLUMNS, _rows(found.candidates[:top]), "Which tensor it was, the most likely first"))
    if found.remedies:
        blocks.append(Bullets("What to change, the least painful first", _remedies(found), "good"))
    if found.notes:
        blocks.append(Bullets("Not certain", found.notes, "unsure"))
    return Report(tuple(blocks))


def _facts(found: Explanation) -> tuple[tuple[str, str], ...]:
    place, last = found.place, found.place.last
    rows = []
    if place.phase:
        again = ", while a checkpointed layer ran again" if place.recomputed else ""
        rows.append(("phase", f"{place.phase}{again}"))
    if last is not None:
        rows.append(("stopped at", f"{last.short}:{last.line} in {last.name}"))
    if found.gpu:
        rows.append(("card", found.gpu))
    if found.diagnosis.missing_bytes:
        rows.append(("missing", f"at least {format_bytes(found.diagnosis.missing_bytes)}"))
    if found.estimate is not None:
        rows.append(("the recipe's peak", f"{format_bytes(found.estimate.peak.allocated_bytes)} allocated"))
    return tuple(rows)


def _rows(entries: tuple[Candidate, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (format_bytes(entry.size_bytes), entry.phase, entry.module, entry.op, entry.numbers) for entry in entries
    )


def _remedies(found: Explanation) -> tuple[str, ...]:
    rows = []
    for remedy in found.remedies:
        needs = f" (then needs {format_bytes(remedy.device_bytes)} of the card)" if remedy.device_bytes else ""
        rows.append(f"{remedy.title}{needs}")
    return tuple(rows)


def oom_json(found: Explanation) -> dict[str, Any]:
    """The same as one JSON object."""
    message, diagnosis, place = found.message, found.diagnosis, found.place
    keys = ("requested_bytes", "capacity_bytes", "free_bytes", "process_bytes", "allocated_bytes", "unallocated_bytes",
            "private_pool_bytes", "allowed_bytes")  # fmt: skip
    return {
        "schema_version": 1,
        "cause": str(diagnosis.cause),
        "missing_bytes": diagnosis.missing_bytes,
        "why": list(diagnosis.sentences),
        "message": {"source": str(message.source), **{key: getattr(message, key) for key in keys}},
        "place": {
            "phase": place.phase or None,
            "part": place.part or None,
            "recomputed": place.recomputed,
            "frames": [f"{frame.short}:{frame.line} {frame.name}" for frame in place.frames],
        },
        "gpu": found.gpu,
        "candidates": [
            {
                "phase": str(entry.phase), "component": str(entry.component), "module": entry.module, "op": entry.op,
                "formula": entry.formula, "numbers": entry.numbers, "bytes": entry.size_bytes, "count": entry.count,
            }
            for entry in found.candidates
        ],
        "peak_allocated_bytes": found.estimate.peak.allocated_bytes if found.estimate else None,
        "remedies": [
            {
                "title": remedy.title, "sets": remedy.sets, "device_bytes": remedy.device_bytes,
                "fits": str(remedy.fits) if remedy.fits is not None else None,
            }
            for remedy in found.remedies
        ],
        "notes": list(found.notes),
    }  # fmt: skip
