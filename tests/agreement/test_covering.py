"""Covering arrays: every possible pair, few rows, always the same ones."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.agreement.covering import Row, cover, pairs_of, random_row


def everything(row: Row) -> bool:
    return True


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 9))
def test_every_pair_occurs(counts: list[int], seed: int) -> None:
    factors = {f"f{i}": [f"{i}.{j}" for j in range(count)] for i, count in enumerate(counts)}
    rows, impossible = cover(factors, everything, seed=seed)
    covered = set().union(*(pairs_of(row, list(factors)) for row in rows))
    wanted = {((a, x), (b, y)) for a, b in combinations(factors, 2) for x in factors[a] for y in factors[b]}
    assert covered == wanted
    assert not impossible
    assert all(row.keys() == factors.keys() for row in rows)


def test_rows_are_few() -> None:
    factors = {f"f{i}": ["a", "b", "c"] for i in range(10)}  # 59,049 combinations; nine rows are the least
    rows, _ = cover(factors, everything)
    assert len(rows) <= 25


def test_rows_are_allowed_and_what_cannot_be_is_named() -> None:
    factors = {"animal": ["dog", "fish"], "place": ["land", "water"], "size": ["small", "large"]}

    def allowed(row: Row) -> bool:
        return (row["animal"], row["place"]) != ("fish", "land")

    rows, impossible = cover(factors, allowed)
    assert all(allowed(row) for row in rows)
    assert (("animal", "fish"), ("place", "land")) in impossible
    # A pair is tried with the defaults of the other factors, of which "land" is one.
    assert impossible <= {
        (("animal", "fish"), ("place", "land")),
        (("animal", "fish"), ("size", "small")),
        (("animal", "fish"), ("size", "large")),
    }


def test_the_same_seed_gives_the_same_rows() -> None:
    factors = {f"f{i}": ["a", "b", "c", "d"] for i in range(5)}
    assert cover(factors, everything, seed=3) == cover(factors, everything, seed=3)
    assert cover(factors, everything, seed=3) != cover(factors, everything, seed=4)


def test_random_rows_are_allowed_or_none() -> None:
    factors = {"a": ["x", "y"]}
    assert random_row(factors, lambda row: row["a"] == "y", random.Random(0)) == {"a": "y"}
    assert random_row(factors, lambda row: False, random.Random(0)) is None
