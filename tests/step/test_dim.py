"""Integers with symbols, expressions and guards against plain integers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.step.dim import Dim, code_of, count_elements, guards, symbol_of

NUMBERS = st.integers(1, 5000)
ARITHMETIC: list[Callable[[Any, Any], Any]] = [
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
    lambda x, y: -(-x // 128) * y, lambda x, y: (8 - x % 8) * 3 + y * x, lambda x, y: 2 * (y - x) // 7 * (x + 1),
]  # fmt: skip


@pytest.mark.parametrize("combine", ARITHMETIC)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_the_expression_is_right_for_other_numbers(
    combine: Callable[[Any, Any], Any], b: int, s: int, other_b: int, other_s: int
) -> None:
    found = combine(Dim.variable(b, "B"), Dim.variable(s, "S"))
    assert operator.index(found) == combine(b, s)
    assert eval(code_of(found), {"B": other_b, "S": other_s}) == combine(other_b, other_s)
    with_constant = combine(Dim.variable(b, "B"), 96)
    assert eval(code_of(with_constant), {"B": other_b}) == combine(other_b, 96)
    reflected = combine(96, Dim.variable(s, "S"))
    assert eval(code_of(reflected), {"S": other_s}) == combine(96, other_s)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_what_was_compared_is_a_guard_that_held(b: int, s: int, limit: int) -> None:
    batch, sequence = Dim.variable(b, "B"), Dim.variable(s, "S")
    with guards() as found:
        outcomes = [
            sequence < limit, sequence <= limit, sequence > batch, batch >= 3, sequence == limit, batch != sequence,
            bool(batch * 2), sequence % 8 == 0, max(sequence, limit) == sequence, (batch, 7) == (b, 7),
        ]  # fmt: skip
        numbers = [int(sequence * 2), float(batch), batch / 2, 3 / sequence]
    assert outcomes == [s < limit, s <= limit, s > b, b >= 3, s == limit, b != s, True, s % 8 == 0, s >= limit, True]
    assert numbers == [2 * s, b, b / 2, 3 / s]
    assert found
    for condition in found:
        assert eval(condition, {"B": b, "S": s}) is True


def test_constants_and_equal_expressions_need_no_guard() -> None:
    batch, hidden = Dim.variable(4, "B"), Dim(4096, "H")
    with guards() as found:
        assert hidden == 4096
        assert batch * hidden == hidden * batch
        assert (hidden + 1) // 2 == 2048
    assert not found


def test_symbols() -> None:
    batch, hidden = Dim.variable(4, "B"), Dim(4096, "H")
    assert (batch * hidden).symbol == "B·H"
    assert (batch + 1).symbol == "(B+1)"
    assert batch + 0 is batch
    assert symbol_of(7) == "7"
    assert (hidden // 2).symbol == "(H//2)"
    assert code_of(hidden // 2) == "2048"


def test_it_is_an_int_to_everybody_else() -> None:
    batch = Dim.variable(4, "B")
    assert {4: "four"}[batch] == "four"
    assert list(range(batch)) == [0, 1, 2, 3]
    assert count_elements((batch, Dim(3, "H"), 2)) == 24
    assert type(count_elements((batch,))) is int
