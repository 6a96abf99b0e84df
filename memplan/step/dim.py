"""Integers that remember how they were computed: symbols for formulas, expressions for other batches and sequences.

A step is recorded once with numbers in the place of B, S and T. What its sizes are for other numbers follows from the
expressions that the dimensions carry; whether it would have been the same step at all follows from the comparisons that were
made with them on the way (guards).

Symbols: B micro batch, S sequence length, T target length of encoder-decoder models.

Known limits:
    `range(dim)` and `[x] * dim` read the number without a trace of it. Descriptions do not loop over B, S or T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from operator import index as plain
from typing import Any

# What B, S and T were compared with while a step was recorded, as Python expressions that held.
_guards: list[dict[str, None]] = []


class Dim(int):
    """An integer with a symbol, so that a size can print its formula, and with an expression in B, S and T.

    `Dim(4096, "H") * Dim(4, "B")` is 16384 with the symbol `H·B`; with a plain int the number itself is the symbol.

    Attributes:
        terms: the factors that depend on B, S or T; none for a constant.
        scale: the constant factor.
    """

    symbol: str
    terms: tuple[str, ...]
    scale: int

    def __new__(
        cls, value: int, symbol: str | None = None, *, terms: tuple[str, ...] = (), scale: int | None = None
    ) -> Dim:
        """An integer `value` that prints as `symbol`."""
        self = super().__new__(cls, value)
        self.symbol = symbol if symbol is not None else str(plain(value))
        self.terms = terms
        self.scale = plain(value) if scale is None else scale
        return self

    @classmethod
    def variable(cls, value: int, symbol: str) -> Dim:
        """B, S or T itself."""
        return cls(value, symbol, terms=(symbol,), scale=1)

    # -- arithmetic -------------------------------------------------------------------------------------

    def __mul__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return Dim(
            plain(self) * plain(other),
            f"{self.symbol}·{symbol_of(other)}",
            terms=tuple(sorted((*self.terms, *terms_of(other)))),
            scale=self.scale * scale_of(other),
        )

    __rmul__ = __mul__

    def __add__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        if not plain(other) and not terms_of(other):
            return self
        return self._opaque(plain(self) + plain(other), "{}+{}", self, other)

    __radd__ = __add__

    def __sub__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return self._opaque(plain(self) - plain(other), "{}-{}", self, other)

    def __rsub__(self, other: int) -> Dim:
        return self._opaque(plain(other) - plain(self), "{}-{}", other, self)

    def __neg__(self) -> Dim:
        return Dim(-plain(self), f"-{self.symbol}", terms=self.terms, scale=-self.scale)

    def __floordiv__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return self._opaque(plain(self) // plain(other), "{}//{}", self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return self._opaque(plain(other) // plain(self), "{}//{}", other, self)

    def __mod__(self, other: int) -> Dim:
        if not isinstance(other, int):
            return NotImplemented
        return self._opaque(plain(self) % plain(other), "{}%{}", self, other)

    def __rmod__(self, other: int) -> Dim:
        return self._opaque(plain(other) % plain(self), "{}%{}", other, self)

    @staticmethod
    def _opaque(value: int, form: str, *operands: int) -> Dim:
        symbol = "(" + form.format(*map(symbol_of, operands)) + ")"
        if not any(map(terms_of, operands)):
            return Dim(value, symbol)
        term = "(" + form.format(*map(_operand, operands)) + ")"
        if value < 0:  # factors stay positive, so that the signs of two of them cancel
            return Dim(value, symbol, terms=(f"(-{term})",), scale=-1)
        return Dim(value, symbol, terms=(term,), scale=1)

    # -- what asks for the number -----------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return self._compare("==", other, super().__eq__)

    def __ne__(self, other: object) -> bool:
        return self._compare("!=", other, super().__ne__)

    def __lt__(self, other: int) -> bool:
        return self._compare("<", other, super().__lt__)

    def __le__(self, other: int) -> bool:
        return self._compare("<=", other, super().__le__)

    def __gt__(self, other: int) -> bool:
        return self._compare(">", other, super().__gt__)

    def __ge__(self, other: int) -> bool:
        return self._compare(">=", other, super().__ge__)

    def __bool__(self) -> bool:
        return self._compare("!=", 0, super().__ne__)

    def __int__(self) -> int:
        return self._number()

    def __float__(self) -> float:
        return float(self._number())

    def __truediv__(self, other: float) -> float:
        return self._number() / other

    def __rtruediv__(self, other: float) -> float:
        return other / self._number()

    def __hash__(self) -> int:
        return super().__hash__()

    def _compare(self, sign: str, other: object, decide: Callable[[Any], bool]) -> bool:
        outcome = decide(other)
        if _guards and outcome is not NotImplemented and (self.terms or terms_of(other)):
            left, right = code_of(self), code_of(other)
            if left != right:
                _guards[-1].setdefault(f"{left}{sign}{right}" if outcome else f"not {left}{sign}{right}")
        return outcome

    def _number(self) -> int:
        number = plain(self)
        if _guards and self.terms:
            _guards[-1].setdefault(f"{code_of(self)}=={number}")
        return number


def symbol_of(value: int) -> str:
    """The symbol of a dimension, or its decimal digits."""
    return value.symbol if isinstance(value, Dim) else str(value)


def terms_of(value: object) -> tuple[str, ...]:
    """The factors that depend on B, S or T."""
    return value.terms if isinstance(value, Dim) else ()


def scale_of(value: int) -> int:
    """The constant factor."""
    return value.scale if isinstance(value, Dim) else value


def code_of(value: object) -> str:
    """The Python expression of a dimension."""
    if isinstance(value, Dim) and value.terms:
        factors = value.terms if value.scale == 1 else (str(value.scale), *value.terms)
        return "*".join(factors)
    return str(plain(value)) if isinstance(value, int) else repr(value)


def _operand(value: int) -> str:
    code = code_of(value)
    return f"({code})" if "*" in code else code


@contextmanager
def guards() -> Iterator[dict[str, None]]:
    """Collects every comparison with B, S or T that is made inside, as expressions that held."""
    found: dict[str, None] = {}
    _guards.append(found)
    try:
        yield found
    finally:
        _guards.pop()


def next_power_of_two(value: int) -> Dim:
    """The smallest power of two that is at least `value`, which is positive."""
    return Dim._opaque(1 << (plain(value) - 1).bit_length(), "1<<({}-1).bit_length()", value)


def executed_pieces(count: int, piece: int) -> list[int]:
    """Sizes of the pieces of `count` that are executed: of those that are full the first two, then the last."""
    pieces = -(-count // piece)
    full = 2 if pieces > 2 else 1 if pieces > 1 else 0
    return [piece] * full + [count - piece * (pieces - 1)]


def count_elements(shape: tuple[int, ...]) -> int:
    """Product of the dimensions as a plain int: symbols are not multiplied out."""
    return prod(map(plain, shape))
