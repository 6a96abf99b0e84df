"""Sums of block sizes that keep their terms: what is alive at a moment, for any batch and sequence.

A storage's size is its shape times its element size, rounded up to 512-byte blocks. Where the shape depends on B, S or T the
size is a term of its own; all constants are one term, counted in bytes. A `Form` says how many of each term are alive, so that
bytes for another batch are one dot product away, exact to the block.

Symbols: B micro batch, S sequence length, T target length of encoder-decoder models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import ge, mul

from memplan.step.dim import scale_of, terms_of
from memplan.step.tensor import StorageInfo
from memplan.units import BLOCK_BYTES

# Term number to how many; term 0 is one byte.
Form = dict[int, int]
BYTES = 0

Evaluate = Callable[[int, int, int], tuple[int, ...]]


class Terms:
    """The distinct block sizes of a recording's storages.

    Attributes:
        infos: the storages.
        of: for each storage, its term and how many of it (bytes for a constant size, blocks where all are whole).
        expressions: the size of each term in bytes, as a Python expression in B, S and T.
    """

    def __init__(self, infos: Sequence[StorageInfo]) -> None:
        self.infos = infos
        self.expressions = ["1"]
        self.of: list[tuple[int, int]] = []
        known: dict[str, int] = {}
        for info in infos:
            factors = sorted(term for size in info.shape for term in terms_of(size))
            scale = info.dtype.itemsize_bytes
            for size in info.shape:
                scale *= scale_of(size)
            if not factors or not scale:
                self.of.append((BYTES, info.size_bytes))
                continue
            weight = 1
            if scale % BLOCK_BYTES == 0:  # whole blocks for any B and S: all such sizes are multiples of one term
                scale, weight = BLOCK_BYTES, scale // BLOCK_BYTES
            expression = _rounded(scale, factors)
            number = known.get(expression)
            if number is None:
                number = known[expression] = len(self.expressions)
                self.expressions.append(expression)
            self.of.append((number, weight))

    def evaluate(self) -> Evaluate:
        """A function from (B, S, T) to the size of every term."""
        body = ", ".join(self.expressions)
        found: Evaluate = eval(f"lambda B, S, T: ({body},)", {"__builtins__": {}})
        return found

    def recorded(self) -> list[int]:
        """The size of every term as it was recorded."""
        sizes = [1] * len(self.expressions)
        for info, (term, weight) in zip(self.infos, self.of, strict=True):
            if term != BYTES:
                sizes[term] = info.size_bytes // weight
        return sizes

    def add(self, form: Form, index: int, count: int) -> None:
        """Count storage `index` into `form`."""
        term, weight = self.of[index]
        form[term] = form.get(term, 0) + weight * count

    def form(self, alive: Mapping[int, int]) -> Form:
        """The form of storages by index and count."""
        found: Form = {}
        for index, count in alive.items():
            if count:
                self.add(found, index, count)
        return found


def _rounded(scale: int, factors: Sequence[str]) -> str:
    product = "*".join((str(scale), *factors))
    return product if scale == BLOCK_BYTES else f"-(-{product}//{BLOCK_BYTES})*{BLOCK_BYTES}"


def added(form: Form, other: Form, times: int = 1) -> Form:
    """`form + times * other`."""
    found = dict(form)
    for term, count in other.items():
        found[term] = found.get(term, 0) + times * count
    return found


def total(form: Form, sizes: Sequence[int]) -> int:
    """The form's bytes for the sizes of its terms."""
    return sum(count * sizes[term] for term, count in form.items())


def covers(form: Form, other: Form) -> bool:
    """Whether `form` is at least `other` whatever the sizes of the terms."""
    return all(form.get(term, 0) >= count for term, count in other.items()) and all(
        count >= other.get(term, 0) for term, count in form.items()
    )


def highest(forms: Iterable[Form], sizes: Sequence[int] | None = None) -> list[int]:
    """Positions of the forms that can be the highest for some sizes, in order; of equal ones the first.

    Args:
        forms: to compare.
        sizes: any likely sizes of the terms, all positive; they change nothing but how soon the answer is there.
    """
    listed = list(forms)
    terms = sorted({term for form in listed for term in form})
    counts = [tuple([form.get(term, 0) for term in terms]) for form in listed]
    kept: list[int] = []
    tall: list[tuple[int, ...]] = []
    # The largest first: most others are covered by one of them, and none of them by a later one.
    weights = [1] * len(terms) if sizes is None else [sizes[term] for term in terms]
    heights = [sum(map(mul, form, weights)) for form in counts]
    for position in sorted(range(len(listed)), key=lambda place: (-heights[place], place)):
        form = counts[position]
        if not any(all(map(ge, other, form)) for other in tall):
            kept.append(position)
            tall.append(form)
    return sorted(kept)


def code(form: Form) -> str:
    """The form as a Python expression over `s`, the sizes of the terms."""
    parts = [f"{count}*s[{term}]" if term else str(count) for term, count in sorted(form.items()) if count]
    return "+".join(parts) or "0"


def guard(conditions: Iterable[str]) -> Callable[[int, int, int], bool]:
    """Whether a recording stands for another (B, S, T) too: everything it compared comes out the same."""
    body = " and ".join(f"({condition})" for condition in conditions) or "True"
    found: Callable[[int, int, int], bool] = eval(f"lambda B, S, T: {body}", {"__builtins__": {}})
    return found
