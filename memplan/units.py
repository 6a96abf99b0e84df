"""Bytes in, bytes out: the one place where a number of bytes becomes text, and back.

Inside memplan every size is an `int` of bytes. GiB is 2**30 bytes and is never written GB;
GB is 10**9 bytes and appears only where a source or a classic rule of thumb speaks of it.
"""

from __future__ import annotations

import re
from operator import index

from memplan.errors import InvalidValueError

KIB = 2**10
MIB = 2**20
GIB = 2**30
GB = 10**9

# c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize: every block is a multiple of 512 bytes.
BLOCK_BYTES = 512

_FACTORS = {
    "b": 1, "byte": 1, "bytes": 1,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": GB, "tb": 10**12,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def round_to_block(size_bytes: int) -> int:
    """Bytes that a storage of `size_bytes` occupies in the caching allocator (multiple of 512)."""
    return -(-index(size_bytes) // BLOCK_BYTES) * BLOCK_BYTES


def format_bytes(size_bytes: int, *, decimals: int | None = None) -> str:
    """`size_bytes` for a human, in binary units: `0 B`, `512 B`, `1.50 KiB`, `8.1 MiB`, `18.81 GiB`.

    Args:
        size_bytes: may be negative (a difference).
        decimals: fixed number of decimals; by default 1 for MiB and 2 for the other units.
    """
    sign = "-" if size_bytes < 0 else ""
    magnitude = abs(size_bytes)
    for unit, factor in (("TiB", 2**40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if magnitude >= factor:
            digits = decimals if decimals is not None else (1 if unit == "MiB" else 2)
            return f"{sign}{magnitude / factor:,.{digits}f} {unit}"
    return f"{sign}{magnitude} B"


def format_count(count: int) -> str:
    """A count of elements for a human: `512`, `3.21 M`, `7.24 B`."""
    for unit, factor in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return str(count)


def parse_bytes(text: str, *, key: str = "size") -> int:
    """Bytes of a quantity with a unit, such as `24 GiB`, `80GB`, `512 MiB`.

    Raises:
        InvalidValueError: no unit, an unknown unit, or not a number.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InvalidValueError(key, text, "a number with a unit", hint="for example 24 GiB, 512 MiB or 80 GB")
    whole, _, fraction = match.group(1).partition(".")
    scale = 10 ** len(fraction)
    return int(int(whole + fraction) * factor // scale)
