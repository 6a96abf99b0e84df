"""Sizes, shares and increases as a budget file spells them: text with a unit that can be read in one way only.

    "72 GiB"  "80GB"  "512 MiB"         sizes; B, KiB, MiB, GiB, TiB (powers of 1024), MB and GB (powers of 1000)
    "5%"                                a share of the expected bytes, for a headroom
    "+1 GiB"  "+5%"  "1 GiB"            what a peak may grow by

A number without a unit, a unit of bits and a letter alone (`80G`) are refused with the readings that they could have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from memplan.errors import InvalidValueError
from memplan.units import GB, GIB, KIB, MIB, format_bytes

UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 2**40, "MB": 10**6, "GB": GB}
LARGEST_BYTES = 2**50
SIZE_PATTERN = r"^[0-9]{1,16}(\.[0-9]{1,9})? ?(B|KiB|MiB|GiB|TiB|MB|GB)$"
SHARE_PATTERN = r"^[0-9]{1,4}(\.[0-9]{1,6})? ?%$"

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,6})?) ?%", re.ASCII)
_ALLOWED = "a size with a unit: B, KiB, MiB, GiB, TiB, MB or GB"
_PPM = 10**6


@dataclass(frozen=True, slots=True)
class Amount:
    """A size, or a share of another size.

    Attributes:
        text: as the user wrote it.
        size_bytes: None for a share.
        share_ppm: millionths of the other size; None for a size.
    """

    text: str
    size_bytes: int | None = None
    share_ppm: int | None = None

    def of(self, whole_bytes: int) -> int:
        """Bytes that the amount means; a share is of `whole_bytes`."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.share_ppm is not None
        return whole_bytes * self.share_ppm // _PPM


def parse_size(value: Any, key: str, *, least_bytes: int = 0) -> int:
    """Bytes of a size such as `72 GiB`.

    Args:
        value: what the file says.
        key: for messages.
        least_bytes: the smallest size that makes sense there.

    Raises:
        InvalidValueError: no text, no unit, a unit that has two readings, or out of bounds.
    """
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in UNITS:
        raise InvalidValueError(key, value, _ALLOWED, hint=_readings(value))
    size_bytes = _exact(match[1], UNITS[match[2]])
    if not least_bytes <= size_bytes <= LARGEST_BYTES:
        bounds = f"from {format_bytes(least_bytes)} to {format_bytes(LARGEST_BYTES)}"
        raise InvalidValueError(key, value, bounds)
    return size_bytes


def parse_amount(value: Any, key: str) -> Amount:
    """A size or a share, for a headroom.

    Raises:
        InvalidValueError: neither of both.
    """
    share = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if share is not None:
        return Amount(value.strip(), share_ppm=_exact(share[1], _PPM // 100))
    if isinstance(value, str) and value.strip().endswith("%"):
        raise InvalidValueError(key, value, "a size with a unit, or a share such as 5%")
    return Amount(str(value).strip(), size_bytes=parse_size(value, key))


def parse_increase(value: Any, key: str) -> Amount:
    """What a peak may grow by: a size or a share of the peak before, with or without a plus.

    Raises:
        InvalidValueError: neither of both.
    """
    text = value.strip() if isinstance(value, str) else value
    return parse_amount(text[1:] if isinstance(text, str) and text.startswith("+") else text, key)


def _exact(number: str, factor: int) -> int:
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * factor // scale


def _readings(value: Any) -> str:
    """What a value without a clear unit could mean, each written out."""
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        return 'for example "72 GiB"'
    number, unit = match[1], match[2]
    if not unit:
        if "." not in number and int(number) >= MIB:
            return f'bytes are "{number} B", which is {format_bytes(int(number))}'
        return "it could mean " + " or ".join(_reading(number, name) for name in ("GiB", "GB"))
    prefix = unit[0].upper()
    names = [name for name in (f"{prefix}iB", f"{prefix}B") if name in UNITS] if prefix in "KMGT" else ["B"]
    is_bits = unit[-1] == "b" or "bit" in unit.lower()
    start = f"{unit} is read as bits by many; in bytes it is " if is_bits else "it could mean "
    return start + " or ".join(_reading(number, name) for name in names)


def _reading(number: str, unit: str) -> str:
    return f'"{number} {unit}" ({_exact(number, UNITS[unit]):,} bytes)'
