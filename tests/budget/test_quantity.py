"""Sizes with one reading; everything else is refused with the readings that it has."""

from __future__ import annotations

import pytest

from memplan.budget.quantity import parse_amount, parse_increase, parse_size
from memplan.errors import InvalidValueError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("72 GiB", 72 * 2**30),
        ("80GB", 80 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("0.1 GiB", 107374182),
        ("2 TiB", 2 * 2**40),
        ("900 MB", 900 * 10**6),
        ("64 KiB", 65536),
        ("17 B", 17),
        (" 8 GiB ", 8 * 2**30),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text, "budget") == size_bytes


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("80G", ['"80 GiB" (85,899,345,920 bytes)', '"80 GB" (80,000,000,000 bytes)']),
        ("24", ['"24 GiB" (25,769,803,776 bytes)', '"24 GB" (24,000,000,000 bytes)']),
        (24, ['"24 GiB"', '"24 GB"']),
        (77309411328, ['"77309411328 B", which is 72.00 GiB']),
        ("80Gb", ["read as bits", '"80 GiB"', '"80 GB"']),
        ("10gbit", ["read as bits"]),
        ("80gb", ['"80 GB"', '"80 GiB"']),
        ("80 gib", ['"80 GiB"']),
        ("4K", ['"4 KiB" (4,096 bytes)']),
        ("2TB", ['"2 TiB"']),
        ("nine GiB", ['for example "72 GiB"']),
        (True, ['for example "72 GiB"']),
        (None, ['for example "72 GiB"']),
        ("-1 GiB", ['for example "72 GiB"']),
        ("1e3 GiB", ['for example "72 GiB"']),
        ("８ GiB", ['for example "72 GiB"']),
        ("", ['for example "72 GiB"']),
    ],
)
def test_refused(value: object, says: list[str]) -> None:
    with pytest.raises(InvalidValueError, match="a size with a unit") as caught:
        parse_size(value, "budget")
    assert all(text in caught.value.hint for text in says), caught.value.hint


@pytest.mark.parametrize("text", ["0 B", "1 B", "2000 TiB"])
def test_bounds(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"from 1\.0 MiB to"):
        parse_size(text, "budget", least_bytes=2**20)


def test_a_share_is_of_something() -> None:
    assert parse_amount("5%", "headroom").of(1000) == 50
    assert parse_amount("2.5 %", "headroom").of(10**12) == 25 * 10**9
    assert parse_amount("2 GiB", "headroom").of(1000) == 2**31


@pytest.mark.parametrize(("text", "allowed"), [("+5%", 50), ("5%", 50), ("+1 KiB", 1024), ("0%", 0), ("0 B", 0)])
def test_increases(text: str, allowed: int) -> None:
    assert parse_increase(text, "max_increase").of(1000) == allowed


@pytest.mark.parametrize("text", ["5", "five%", "+", "++1 GiB", "-5%", "%", 5, None])
def test_increases_refused(text: object) -> None:
    with pytest.raises(InvalidValueError):
        parse_increase(text, "max_increase")
