"""The longest sample: what it needs, what fits, and reading lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import memplan
from memplan.errors import FileFormatError, InvalidValueError
from memplan.estimate import Fits
from memplan.planner import longest_sample
from memplan.planner.lengths import counted, read_lengths
from memplan.planner.limit import limit_of
from memplan.recipe import Recipe
from tests.planner.small import WIDE, budget

RUN = {"model": WIDE, "micro_batch_size": 2}
LENGTHS = {100: 900, 700: 60, 1500: 5, 3000: 2}


def test_the_peak_is_that_of_a_batch_padded_to_the_longest() -> None:
    found = longest_sample(Recipe(**RUN), LENGTHS, budget_bytes=budget(5))
    expected = memplan.estimate(**RUN, sequence_length=3000, padding=True)
    assert (found.samples, found.longest, found.truncated, found.padding) == (967, 3000, 0, True)
    assert found.peak == expected.peak
    assert found.verdict == limit_of(None, budget(5)).verdict(expected)


def test_the_fitting_length_divides_the_samples() -> None:
    found = longest_sample(Recipe(**RUN), LENGTHS, budget_bytes=budget(5))
    assert found.fitting_length is not None
    limit = limit_of(None, budget(5))
    for length, fits in ((found.fitting_length, True), (found.fitting_length + 1, False)):
        estimate = memplan.estimate(**RUN, sequence_length=length, padding=True)
        assert (limit.verdict(estimate).fits is Fits.FITS) == fits
    assert found.over == sum(count for length, count in LENGTHS.items() if length > found.fitting_length)
    assert 0 < found.over < 967


def test_samples_are_cut_where_the_recipe_says_so() -> None:
    found = longest_sample(Recipe(**RUN, sequence_length=1000), LENGTHS, budget_bytes=budget(5))
    assert (found.longest, found.truncated) == (1000, 7)
    learned = {"model": "gpt2", "micro_batch_size": 1}  # positions end where their table ends
    beyond = longest_sample(Recipe(**learned), {9000: 1, 10: 1}, budget_bytes=budget(5))
    assert (beyond.longest, beyond.truncated) == (1024, 1)


def test_equal_or_single_samples_need_no_padding() -> None:
    assert not longest_sample(Recipe(**RUN), [512] * 9, budget_bytes=budget(5)).padding
    assert not longest_sample(Recipe(**{**RUN, "micro_batch_size": 1}), [512, 9], budget_bytes=budget(5)).padding
    assert not longest_sample(Recipe(**RUN, padding=False), [512, 9], budget_bytes=budget(5)).padding
    assert longest_sample(Recipe(**RUN), [512, 9], budget_bytes=budget(5)).padding


def test_nothing_fits() -> None:
    found = longest_sample(Recipe(**RUN), [50, 60], budget_bytes=budget(2.5))
    assert found.fitting_length is None
    assert found.over == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lengths.txt", "12\n7\n\n12\n"),
        ("lengths.csv", "length,count\n12,2\n7,1\n"),
        ("lengths.csv", "\ufefftokens\n12\n12\n7\n"),
        ("lengths.json", "[12, 7, 12]"),
        ("lengths.json", '{"12": 2, "7": 1}'),
    ],
)
def test_lengths_are_read(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert read_lengths(file) == Counter({12: 2, 7: 1})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("12\nx\n", "line 2"),
        ("1,2,3\n", "3 values"),
        ("12.5\n", "12.5"),
        ("-3\n", "-3"),
        ("12,0\n", "count"),
        ("", "at least one"),
        ("header\n", "at least one"),
        ("[]", "at least one"),
        ("[1, true]", "True"),
        ('{"12": "2"}', "count"),
        ('{"twelve": 2}', "twelve"),
        ("[1, 2", "JSON"),
        ("9" * 30, "whole number"),
        ("²\n", "²"),
    ],
)
def test_wrong_lengths_are_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((FileFormatError, InvalidValueError)) as caught:
        read_lengths(file)
    assert named in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        read_lengths(tmp_path / "nowhere")
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="UTF-8"):
        read_lengths(file)
    with pytest.raises(InvalidValueError):
        counted([True])
