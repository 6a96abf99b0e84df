"""Bytes as text and text as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import InvalidValueError
from memplan.units import BLOCK_BYTES, GB, GIB, KIB, MIB, format_bytes, format_count, parse_bytes, round_to_block


def test_binary_and_decimal_units_differ() -> None:
    assert (KIB, MIB, GIB, GB) == (1024, 1_048_576, 1_073_741_824, 1_000_000_000)


@pytest.mark.parametrize(
    ("size", "blocks"), [(0, 0), (1, 1), (511, 1), (512, 1), (513, 2), (1024, 2), (10**15, 1953125000000)]
)
def test_round_to_block(size: int, blocks: int) -> None:
    assert round_to_block(size) == blocks * 512


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**60))
def test_rounding_adds_less_than_a_block_and_is_idempotent(size: int) -> None:
    rounded = round_to_block(size)
    assert 0 <= rounded - size < BLOCK_BYTES
    assert rounded % BLOCK_BYTES == 0
    assert round_to_block(rounded) == rounded


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (MIB, "1.0 MiB"),
        (8_519_680, "8.1 MiB"),
        (GIB - 1, "1,024.0 MiB"),
        (GIB, "1.00 GiB"),
        (20_197_113_856, "18.81 GiB"),
        (2**40, "1.00 TiB"),
        (3 * 2**50, "3,072.00 TiB"),
        (-1536, "-1.50 KiB"),
        (-1, "-1 B"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_format_bytes_with_fixed_decimals() -> None:
    assert format_bytes(GIB + GIB // 4, decimals=1) == "1.2 GiB"
    assert format_bytes(5 * MIB, decimals=0) == "5 MiB"
    assert format_bytes(7, decimals=2) == "7 B"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (21_549_136, "21.55 M"),
        (7_241_732_096, "7.24 B"),
        (10**12, "1.00 T"),
        (-2_000_000, "-2.00 M"),
    ],
)
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24 GiB", 24 * GIB),
        ("24GiB", 24 * GIB),
        (" 24  gib ", 24 * GIB),
        ("80GB", 80 * GB),
        ("512 MiB", 512 * MIB),
        ("1.5 KiB", 1536),
        ("0.1 GB", 100_000_000),
        ("0 B", 0),
        ("7 bytes", 7),
        ("1 byte", 1),
        ("2 TiB", 2**41),
        ("2 TB", 2 * 10**12),
        ("3 kB", 3000),
        ("3 MB", 3 * 10**6),
    ],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "24", "GiB", "-1 GiB", "24 Gib/s", "1e3 MB", "24 GIBI", "٢٤ GiB", ".5 GiB", "1. GiB", "nan GB"]
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_bytes(text, key="limit")
    assert str(caught.value) == (
        f"limit = {text!r} is not allowed: a number with a unit\nfor example 24 GiB, 512 MiB or 80 GB"
    )


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"]))
def test_parsing_is_exact_where_floats_are_not(number: int, unit: str) -> None:
    one = parse_bytes(f"1 {unit}")
    assert parse_bytes(f"{number} {unit}") == number * one
    assert parse_bytes(f"{number}.0 {unit}") == number * one


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**63))
def test_what_is_written_is_read_back_within_its_decimals(size: int) -> None:
    text = format_bytes(size, decimals=6).replace(",", "")
    assert abs(parse_bytes(text) - size) <= size * 1e-6 + 1
