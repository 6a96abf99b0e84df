"""The suites: cells as rows of `suites.toml`, each a recipe and what it is for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.cards import resolve_model
from memplan.errors import UnknownNameError
from memplan.recipe import Recipe

_TABLE = Path(__file__).resolve().parent / "suites.toml"
# Config keys that hold one entry a layer, cut to the number of layers that [models] asks for.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "sliding_window_pattern")


@dataclass(frozen=True, slots=True)
class Cell:
    """One row.

    Attributes:
        name: unique over all suites; the record is called after it.
        keys: recipe keys, complete but for the GPU.
        capacity: limit of torch's allocator as a multiple of the predicted reserved peak; None for the whole card.
        asks: what the row is for.
    """

    name: str
    suite: str
    keys: Mapping[str, Any]
    asks: str
    capacity: float | None = None

    def recipe(self, gpu: str | None = None) -> Recipe:
        """The recipe, on `gpu` where one is named."""
        return Recipe(**self.keys, **({"gpu": gpu} if gpu else {}))


def suite_names() -> tuple[str, ...]:
    """The suites, in the order in which they are worth running."""
    return tuple(_table()["suites"])


def cells(suite: str | None = None) -> tuple[Cell, ...]:
    """The cells of `suite`, or of all suites, most telling first.

    Raises:
        UnknownNameError: no such suite.
    """
    names = suite_names()
    if suite is not None and suite not in names:
        raise UnknownNameError("suite", suite, names)
    return tuple(cell for name in names if suite in (None, name) for cell in _rows(name))


@lru_cache(maxsize=8)
def _rows(suite: str) -> tuple[Cell, ...]:
    table = _table()
    found = []
    for row in table["suites"][suite]:
        keys = {**table["defaults"], **row["recipe"], "model": _model(row["model"])}
        found.append(Cell(row["name"], suite, keys, row["asks"], row.get("capacity")))
    return tuple(found)


def _model(name: str) -> str | dict[str, Any]:
    """A card by its id, or the config of a row of [models]: a card with other numbers."""
    changes = _table()["models"].get(name)
    if changes is None:
        return name
    changed = dict(changes)
    config = {**resolve_model(changed.pop("card")).config, **changed}
    layers = config.get("num_hidden_layers")
    for key in _PER_LAYER:
        if isinstance(config.get(key), list) and layers is not None:
            config[key] = config[key][:layers]
    return config


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    with _TABLE.open("rb") as file:
        return tomllib.load(file)
