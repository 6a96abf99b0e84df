"""Why the memory was not there: from the sizes in the message alone.

limit              the process may not take more (`set_per_process_memory_fraction`)
larger_than_card   one allocation larger than the whole card
fragmentation      the allocator holds enough, but in no single piece
other_processes    enough would be free without other processes
lack               the run needs more than the card has
outside_allocator  a library or the driver ran out beside torch's allocator
unknown            the message does not say enough
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memplan.oom.message import OomMessage, Source
from memplan.units import MIB, format_bytes

# What the card lists as taken beyond this process without anybody else: context figures are rounded to two decimals.
_OTHERS_THRESHOLD_BYTES = 256 * MIB
# A card of which less than this would be left, were everything packed without a gap, is full: the next tensor fails.
FULL = (2, 100)


class Cause(StrEnum):
    """One word for what happened."""

    FRAGMENTATION = "fragmentation"
    LACK = "lack"
    LIMIT = "limit"
    LARGER_THAN_CARD = "larger_than_card"
    REFUSED = "refused"
    OTHER_PROCESSES = "other_processes"
    OUTSIDE_ALLOCATOR = "outside_allocator"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause with its arithmetic.

    Attributes:
        missing_bytes: how much more would have to be free, with everything that the allocator holds unused put to use;
            0 where that would be enough, None where the message does not say.
        sentences: the figures, for a reader.
    """

    cause: Cause
    missing_bytes: int | None
    sentences: tuple[str, ...]


def diagnose(message: OomMessage) -> Diagnosis:
    """The cause that the message's figures show."""
    if message.source is not Source.ALLOCATOR:
        who = "a library" if message.source is Source.LIBRARY else "the driver"
        sentences = (f"{who} ran out of memory outside torch's allocator, which holds nearly the whole card",)
        return Diagnosis(Cause.OUTSIDE_ALLOCATOR, None, sentences)
    requested, free, unused = message.requested_bytes, message.free_bytes, message.unallocated_bytes
    if requested is None or free is None or unused is None or message.capacity_bytes is None:
        return Diagnosis(Cause.UNKNOWN, None, ("the message was cut off: it does not say what was free",))
    others = other_bytes(message)
    facts = [
        f"asked for {format_bytes(requested)}; {format_bytes(free)} of the card's {format_bytes(message.capacity_bytes)}"
        f" was free, and {format_bytes(unused)} was reserved by torch but in no tensor"
    ]
    if others:
        facts.append(f"other processes hold {format_bytes(others)} of this card")
    missing = max(0, requested - free - unused)
    cause = _cause(message, requested, free, unused, others)
    if cause is Cause.LACK and not missing:
        left = format_bytes(free + unused - requested)
        facts.append(f"packed without a gap it would have gone in, with {left} left: the card is full")
    if cause is Cause.REFUSED:
        facts.append("that is more than was asked for: the driver refused for another reason (a limit, Windows, MIG)")
    return Diagnosis(cause, missing, tuple(facts))


def _cause(message: OomMessage, requested: int, free: int, unused: int, others: int) -> Cause:
    assert message.capacity_bytes is not None
    reserved = message.reserved_bytes or 0
    if requested > message.capacity_bytes:
        return Cause.LARGER_THAN_CARD
    if message.allowed_bytes is not None and reserved + requested > message.allowed_bytes and free >= requested:
        return Cause.LIMIT
    if free >= requested:
        return Cause.REFUSED
    left = free + unused - requested
    if left >= message.capacity_bytes * FULL[0] // FULL[1]:
        # Neither what is free nor one unused piece is large enough; together they are, with room to spare.
        return Cause.FRAGMENTATION
    if others and free + unused + others >= requested:
        return Cause.OTHER_PROCESSES
    return Cause.LACK


def other_bytes(message: OomMessage) -> int:
    """What other processes hold of the card; 0 where nobody does or the message does not tell.

    A message that names several processes does not say which is its own: the one whose use is nearest above what the
    allocator reserved is taken for it.
    """
    reserved = message.reserved_bytes or 0
    if message.other_processes and message.process_bytes is None:
        sizes = sorted(size for _, size in message.other_processes)
        own = next((size for size in sizes if size >= reserved - MIB), sizes[-1])
        return sum(sizes) - own
    if message.process_bytes is None or message.capacity_bytes is None or message.free_bytes is None:
        return 0
    rest = message.capacity_bytes - message.free_bytes - message.process_bytes
    return rest if rest > _OTHERS_THRESHOLD_BYTES else 0
