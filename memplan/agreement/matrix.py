"""The sample, walked and traced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from memplan.agreement.cases import factors, is_walked, recipe_of
from memplan.agreement.covering import Row, cover, random_row
from memplan.compare import Comparison, compare

SEED = 20
# What `memplan compare --matrix` runs at least.
CELLS = 600


@dataclass(frozen=True, slots=True)
class Cell:
    """One recipe of the sample, by its choices."""

    row: tuple[tuple[str, str], ...]

    @property
    def choices(self) -> Row:
        """Factor -> choice."""
        return dict(self.row)

    @property
    def model_type(self) -> str:
        """Of the small model."""
        return self.choices["model_type"]

    @property
    def text(self) -> str:
        """What is not plain about it, in words."""
        plain = {name: choices[0] for name, choices in factors().items()}
        said = [f"{name} {value}" for name, value in self.row if value != plain[name] and name != "model_type"]
        return ", ".join(said) or "plain"


@dataclass(frozen=True, slots=True)
class Result:
    """A cell and what became of it."""

    cell: Cell
    comparison: Comparison


def sample(cells: int = CELLS) -> list[Cell]:
    """Recipes in which every pair of choices occurs that can occur, filled up at random to `cells`.

    The same installed families, methods and seed give the same recipes.
    """
    choices = factors()
    rows, _ = cover(choices, is_walked, seed=SEED)
    found = dict.fromkeys(Cell(tuple(row.items())) for row in rows)
    chance = random.Random(SEED)
    while len(found) < cells:
        row = random_row(choices, is_walked, chance)
        if row is None:
            break
        found[Cell(tuple(row.items()))] = None
    return list(found)


def quick_sample(cells: int) -> list[Cell]:
    """Recipes for every run of the tests: each model type in turn, with choices at random; always the same ones."""
    choices = factors()
    chance = random.Random(SEED)
    found: dict[Cell, None] = {}
    for model_type in islice(cycle(choices["model_type"]), 2 * cells):
        row = random_row({**choices, "model_type": [model_type]}, is_walked, chance)
        if row is not None and len(found) < cells:
            found[Cell(tuple(row.items()))] = None
    return list(found)


def run(cells: Sequence[Cell], *, jobs: int = 2) -> list[Result]:
    """Walk and trace every cell; `jobs` workers trace at a time.

    Raises:
        UnavailableError: torch, transformers or peft is missing.
    """
    comparisons = compare([recipe_of(cell.choices) for cell in cells], jobs=jobs)
    return [Result(cell, comparison) for cell, comparison in zip(cells, comparisons, strict=True)]
