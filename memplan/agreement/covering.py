"""Covering arrays: few rows in which every allowed pair of choices occurs.

Greedy: a row begins with a pair that no row has yet, and every further factor takes the choice that adds most new pairs.
The same factors and seed give the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Choice = tuple[str, str]
Pair = tuple[Choice, Choice]
Row = dict[str, str]


def pairs_of(row: Mapping[str, str], order: Sequence[str]) -> set[Pair]:
    """Every pair of choices in a row, each in the order of the factors."""
    return set(combinations([(name, row[name]) for name in order if name in row], 2))


def cover(
    factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool], *, seed: int = 0
) -> tuple[list[Row], set[Pair]]:
    """Rows that together hold every pair of choices that some allowed row holds.

    Args:
        factors: the choices of each factor; the first one is its default.
        allowed: whether a complete row makes sense.
        seed: of the choice between equals.

    Returns:
        The rows, and the pairs that no row could take: not together with defaults for the other factors, nor otherwise.
    """
    order = list(factors)
    chance = random.Random(seed)
    every = [((a, x), (b, y)) for a, b in combinations(order, 2) for x in factors[a] for y in factors[b]]
    chance.shuffle(every)
    open_pairs = dict.fromkeys(every)
    rows: list[Row] = []
    impossible: set[Pair] = set()
    while open_pairs:
        pair = next(iter(open_pairs))
        row = _grown(pair, factors, open_pairs, allowed, chance)
        if row is None:
            impossible.add(pair)
            del open_pairs[pair]
            continue
        rows.append(row)
        for covered in pairs_of(row, order):
            open_pairs.pop(covered, None)
    return rows, impossible


def _grown(
    pair: Pair,
    factors: Mapping[str, Sequence[str]],
    open_pairs: Mapping[Pair, None],
    allowed: Callable[[Row], bool],
    chance: random.Random,
) -> Row | None:
    """An allowed row with `pair` and as many open pairs as greed finds; None where there is no allowed row with it."""
    order = list(factors)
    row = {name: factors[name][0] for name in order} | dict(pair)
    if not allowed(row):
        return None
    settled = dict(pair)
    rest = [name for name in order if name not in settled]
    chance.shuffle(rest)
    for name in rest:
        gains: dict[str, int] = {}
        for choice in factors[name]:
            gains[choice] = sum(
                _ordered((name, choice), (other, value), order) in open_pairs for other, value in settled.items()
            )
        ranked = sorted(factors[name], key=lambda choice: (-gains[choice], chance.random()))
        for choice in ranked:
            if choice == row[name] or allowed({**row, name: choice}):
                row[name] = settled[name] = choice
                break
    return row


def _ordered(a: Choice, b: Choice, order: Sequence[str]) -> Pair:
    return (a, b) if order.index(a[0]) < order.index(b[0]) else (b, a)


def random_row(
    factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool], chance: random.Random, *, attempts: int = 200
) -> Row | None:
    """An allowed row of independent choices; None where none was found."""
    for _ in range(attempts):
        row = {name: chance.choice(choices) for name, choices in factors.items()}
        if allowed(row):
            return row
    return None
