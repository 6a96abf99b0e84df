"""Words and numbers of reports."""

from __future__ import annotations

import pytest

from memplan.estimate import Component
from memplan.report.wording import component_name, counted, gib, gib_apart, model_name, share, value_text
from memplan.units import GIB, MIB


def test_every_component_has_a_name() -> None:
    names = [component_name(component) for component in Component]
    assert len(set(names)) == len(names)
    assert "_" not in "".join(names)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 10, "0.0 %"), (1, 10_000, "<0.1 %"), (353, 1000, "35.3 %"), (5, 5, "100.0 %"), (1, 0, "")],
)
def test_share(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_gib_has_two_decimals() -> None:
    assert gib(15 * GIB + GIB // 4) == "15.25 GiB"
    assert gib(1234 * GIB) == "1,234.00 GiB"


def test_sizes_that_differ_look_different() -> None:
    assert gib_apart(GIB, 2 * GIB) == ["1.0 GiB", "2.0 GiB"]
    assert gib_apart(GIB, GIB) == ["1.0 GiB", "1.0 GiB"]
    assert gib_apart(24 * GIB, 24 * GIB + MIB) == ["24.000 GiB", "24.001 GiB"]


def test_values_as_a_user_writes_them() -> None:
    assert [value_text(value) for value in (True, False, 1.5, "x", ["a"], {"r": 8})] == [
        "true",
        "false",
        "1.5",
        "x",
        '["a"]',
        '{"r": 8}',
    ]


def test_counted() -> None:
    assert [counted(number, "card") for number in (0, 1, 130)] == ["0 cards", "1 card", "130 cards"]


def test_model_name() -> None:
    assert model_name({"model": "gpt2"}) == "gpt2"
    assert model_name({"model": {"model_type": "llama"}}) == "llama (inline config)"
