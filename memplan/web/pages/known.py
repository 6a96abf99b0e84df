"""How we know: what measured records say about estimates of a family and a method.

The figures are those of the committed page `memplan/evidence/ACCURACY.md`, which a test holds to the code and the records,
so that no visitor waits for hundreds of estimates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memplan.evidence.accuracy import ACCURACY_FILE
from memplan.evidence.records import Record, record_files
from memplan.evidence.scoring import group_of

_PERCENT = re.compile(r"[+-]\d+\.\d+(?= %)")


@dataclass(frozen=True, slots=True)
class Known:
    """Errors of estimates at one level.

    Attributes:
        about: which records, in words.
        source, title: of the records, short and in words.
        runs: how many were measured.
        lowest, highest: signed errors in percent; negative where memory was under-predicted.
    """

    about: str
    source: str
    title: str
    level: str
    runs: int
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration of the committed page.

    Attributes:
        family: model type of its recipe.
    """

    source: str
    record: Record
    family: str
    runs: int
    level: str
    errors: tuple[float, ...]


def known(family: str, method: str) -> tuple[Known, ...]:
    """What is known of the family under the method, of the family, and of the method; the nearest first."""
    of_family = [row for row in rows() if row.family == family]
    of_method = [row for row in rows() if row.record.method == method]
    of_both = [row for row in of_family if row.record.method == method]
    if of_both:
        return tuple(_summed(f"{family} models with {method}", of_both))
    return (*_summed(f"{family} models, any method", of_family), *_summed(f"{method} on any model", of_method))


def _summed(about: str, found: list[Row]) -> Iterator[Known]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row.source, row.level), []).append(row)
    titles = {file.name: file.title for file in record_files()}
    for (source, level), members in groups.items():
        errors = [error for row in members for error in row.errors]
        yield Known(about, source, titles[source], level, sum(row.runs for row in members), min(errors), max(errors))


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every configuration of the committed page that has an estimate."""
    by_name: dict[str, tuple[str, Record]] = {}
    for file in record_files():
        for record in file.records:
            for name in (record.group, record.id):
                if name:
                    by_name.setdefault(name, (file.name, record))
    found = []
    for cells in _table_rows(("configuration", "runs", "level", "measured bytes", "estimate", "trace")):
        name, runs, level, _, errors, _ = cells
        numbers = tuple(float(number) for number in _PERCENT.findall(errors))
        if numbers:
            source, record = by_name[name]
            found.append(Row(source, record, group_of(record, "family", source), int(runs), level, numbers))
    return tuple(found)


def _table_rows(headings: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The rows of every table of the page with these headings."""
    inside = False
    for line in ACCURACY_FILE.read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|")) if line.startswith("|") else ()
        if not cells:
            inside = False
        elif cells == headings:
            inside = True
        elif inside and len(cells) == len(headings) and not cells[0].startswith("---"):
            yield cells


def family_and_method(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """What the records are grouped by, for a complete recipe."""
    from memplan.cards import resolve_model

    config = resolve_model(recipe["model"], allow_paths=False).config
    return str(config["model_type"]), str(recipe["method"])
