"""The peak of the longest batch that data can make, from a list or a histogram of lengths in tokens.

A run that survives a thousand steps can fail at the one that draws its longest sample: the peak is that of a micro-batch
padded to it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from memplan.errors import FileFormatError, InvalidValueError
from memplan.families.positions import max_positions
from memplan.planner.boundary import MOST_SEQUENCE, largest
from memplan.planner.result import LengthReport
from memplan.planner.scoring import Scorer
from memplan.recipe import Recipe, parse_json
from memplan.resolve import resolve

MAX_LENGTHS_FILE_BYTES = 64 * 2**20

Lengths = Iterable[int] | Mapping[int, int]


def longest_sample(recipe: Recipe, lengths: Lengths, scorer: Scorer) -> LengthReport:
    """The peak of the longest batch, and the longest length that fits.

    Samples are cut at `sequence_length` where the recipe says one, else at the model's positions. In a micro-batch of
    several sequences of different lengths there is padding, unless the recipe says otherwise.

    Raises:
        InvalidValueError: no lengths, or one that is no positive number.
        InputError, UnsupportedError: as `memplan.estimate`.
    """
    counts = counted(lengths)
    resolved = resolve(recipe)
    cut = recipe.sequence_length or max_positions(resolved.model.config) or max(counts)
    trained: Counter[int] = Counter()
    for length, count in counts.items():
        trained[min(length, cut)] += count
    longest = max(trained)
    if recipe.padding is None and resolved["micro_batch_size"] > 1 and trained[longest] < sum(trained.values()):
        recipe = recipe.replace(padding=True)
    recipe = recipe.replace(sequence_length=longest)
    estimate = scorer.judge(recipe)
    fitting = largest(recipe, "sequence", scorer).value
    assert fitting is None or isinstance(fitting, int)
    return LengthReport(
        samples=sum(counts.values()),
        longest=longest,
        truncated=sum(count for length, count in counts.items() if length > cut),
        padding=bool(resolve(recipe)["padding"]),
        peak=estimate.peak,
        verdict=scorer.limit.verdict(estimate),
        fitting_length=fitting,
        over=sum(count for length, count in trained.items() if fitting is None or length > fitting),
    )


def counted(lengths: Lengths) -> Counter[int]:
    """How many samples there are of each length.

    Raises:
        InvalidValueError: none, or a length or count that is no positive whole number.
    """
    found: Counter[int] = Counter()
    pairs = lengths.items() if isinstance(lengths, Mapping) else ((length, 1) for length in lengths)
    for length, count in pairs:
        for name, number, most in (("length", length, MOST_SEQUENCE), ("count of a length", count, 10**12)):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
                raise InvalidValueError(name, number, f"a whole number from 1 to {most}")
        found[length] += count
    if not found:
        raise InvalidValueError("lengths", [], "at least one length")
    return found


def read_lengths(path: Path) -> Counter[int]:
    """Lengths from a file.

    One number a line; lines `length,count` (a line of names may stand on top); a JSON list of numbers; or a JSON object of
    counts by length.

    Raises:
        FileFormatError: missing, too large, or none of these; says the line.
        InvalidValueError: a number that cannot be a length.
    """
    if not path.is_file():
        raise FileFormatError(f"no such file: {path}")
    if path.stat().st_size > MAX_LENGTHS_FILE_BYTES:
        raise FileFormatError(
            f"{path} is larger than {MAX_LENGTHS_FILE_BYTES // 2**20} MiB", hint="give counts by length instead"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if text.lstrip()[:1] in ("[", "{"):
        return counted(_of_json(parse_json(text, str(path)), path))
    return counted(_of_lines(text, path))


def _of_json(data: object, path: Path) -> Lengths:
    if isinstance(data, list):
        return data
    assert isinstance(data, dict)
    return {_whole(str(key), f"{path}: the key"): value for key, value in data.items()}


def _of_lines(text: str, path: Path) -> Mapping[int, int]:
    found: Counter[int] = Counter()
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if not cells or (number == 1 and not cells[0][:1].isdigit() and cells[0][:1] not in "+-"):
            continue
        if len(cells) > 2:
            raise FileFormatError(
                f"{path}: line {number}: a length, or a length and its count, not {len(cells)} values"
            )
        values = [_whole(cell, f"{path}: line {number}:") for cell in cells]
        counted({values[0]: values[1] if len(values) == 2 else 1})
        found[values[0]] += values[1] if len(values) == 2 else 1
    return found


def _whole(text: str, where: str) -> int:
    if not text.lstrip("+-").isascii() or not text.lstrip("+-").isdigit() or len(text) > 20:
        raise FileFormatError(f"{where} {text[:40]!r} is not a whole number", hint="lengths are counted in tokens")
    return int(text)
