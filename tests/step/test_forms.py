"""Sums of block sizes against the sizes themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.dim import Dim
from memplan.step.forms import BYTES, Terms, added, code, covers, guard, highest, total
from memplan.step.tensor import Shape, StorageInfo
from memplan.units import round_to_block

FORMS = st.lists(st.dictionaries(st.integers(0, 3), st.integers(-3, 9), max_size=4), min_size=1, max_size=12)
SIZES = st.lists(st.integers(0, 7), min_size=4, max_size=4)


def info(index: int, shape: Shape, dtype: DType) -> StorageInfo:
    elements = 1
    for size in shape:
        elements *= int(size)
    size = round_to_block(elements * dtype.itemsize_bytes) if elements else 0
    return StorageInfo(index, size, Component.ACTIVATIONS, "op", "module", shape, dtype)


def shapes(batch: int, sequence: int) -> list[tuple[Shape, DType]]:
    b, s = Dim.variable(batch, "B"), Dim.variable(sequence, "S")
    return [
        ((b, s, 4096), DType.BFLOAT16),
        ((b, s, Dim(1024, "K")), DType.BFLOAT16),
        ((b, s), DType.INT64),
        ((b, 7, s, s + 1), DType.FLOAT32),
        ((b, 7, -(-s // 128) * 128), DType.FLOAT32),
        ((8 - s % 8, b * s), DType.FLOAT16),
        ((3, 5), DType.FLOAT32),
        ((b, 0), DType.FLOAT32),
        ((), DType.FLOAT32),
    ]


@given(st.tuples(st.integers(1, 9), st.integers(1, 700)), st.tuples(st.integers(1, 9), st.integers(1, 700)))
def test_sizes_of_another_batch_are_those_of_its_own_recording(here: tuple[int, int], there: tuple[int, int]) -> None:
    mine, theirs = (
        [info(index, shape, dtype) for index, (shape, dtype) in enumerate(shapes(*numbers))]
        for numbers in (here, there)
    )
    terms = Terms(mine)
    sizes = terms.evaluate()(*there, 0)
    assert [weight * sizes[term] for term, weight in terms.of] == [entry.size_bytes for entry in theirs]


def test_whole_blocks_share_a_term() -> None:
    terms = Terms([info(index, shape, dtype) for index, (shape, dtype) in enumerate(shapes(3, 5)[:2])])
    assert terms.expressions == ["1", "512*B*S"]
    assert terms.of == [(1, 16), (1, 4)]


def test_constants_are_bytes() -> None:
    terms = Terms([info(0, (3, 5), DType.FLOAT32), info(1, (), DType.FLOAT32)])
    assert terms.form({0: 2, 1: 1}) == {BYTES: 3 * 512}


@given(FORMS, SIZES)
def test_one_of_the_highest_is_the_first_maximum(forms: list[dict[int, int]], sizes: list[int]) -> None:
    kept = highest(forms)
    heights = [total(form, sizes) for form in forms]
    assert max(heights[position] for position in kept) == max(heights)
    assert kept == sorted(kept)
    for position in range(len(forms)):
        if position not in kept:
            assert any(covers(forms[other], forms[position]) for other in kept)


@given(FORMS, SIZES)
def test_written_as_code_a_form_is_its_total(forms: list[dict[int, int]], sizes: list[int]) -> None:
    sizes = [1, *sizes[1:]]  # the first term is one byte
    for form in forms:
        assert eval(code(form), {"s": sizes}) == total(form, sizes)
    assert total(added(forms[0], forms[-1], 3), sizes) == total(forms[0], sizes) + 3 * total(forms[-1], sizes)


def test_guards_hold_together() -> None:
    holds = guard(["S>4", "not B==2"])
    assert holds(1, 5, 0)
    assert not holds(2, 5, 0)
    assert not holds(1, 4, 0)
    assert guard([])(1, 1, 1)
