"""What a config keeps where a recipe that is written into it says nothing: the recipe's defaults replace no line of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.interop.reading import Reading
from memplan.recipe import KEYS_OF_THE_BASE, KEYS_OF_THE_METHOD, Recipe
from memplan.resolve import Resolved, resolve

# Keys that decide each other: a recipe that says one of a group says nothing about the rest by what the file has there.
_GROUPS = (
    frozenset({"method", *KEYS_OF_THE_METHOD, *KEYS_OF_THE_BASE}),
    frozenset({"dtype", "precision", "autocast_dtype"}),
    frozenset({"optim", "optim_args", "optim_target_modules"}),
    frozenset({"stack", "stack_version", "loss"}),
)
# What a framework does of itself, whatever its file says.
_ITS_OWN = frozenset({"stack", "stack_version", "loss", "padding"})


def completed(recipe: Recipe, old: Reading, name: str) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with what it leaves open taken from the file, and a sentence for each key whose default it would change.

    Args:
        recipe: what is to run.
        old: the file as it is.
        name: of the file.

    Raises:
        InputError: what the file keeps contradicts the recipe.
    """
    said = recipe.said()
    kept = old.keys_beside(said)
    taken = {key: value for key, value in kept.items() if key not in said and not _decided(key, said)}
    whole = Recipe(**{**taken, **said}).with_uncovered(recipe.uncovered).with_origins(recipe.origins)
    alone = resolve(recipe)
    notes = [
        f"{key} stays {value!r}, as {name} says; the recipe does not say it, its default is {alone.values[key]!r}"
        for key, value in taken.items()
        if key not in _ITS_OWN and key in alone.values and _plain(alone.values[key]) != _plain(value)
    ]
    if old.open_length and "sequence_length" not in said:
        notes.append(f"sequence_length is left open: {old.open_length}")
    return whole, tuple(notes)


def _decided(key: str, said: Mapping[str, Any]) -> bool:
    return any(key in group and not group.isdisjoint(said) for group in _GROUPS)


def _plain(value: Any) -> Any:
    """Enums as text; checkpointing without a word on its kind is not reentrant."""
    return "non-reentrant" if value is True else str(value)


def length_paths(settings: Any, resolved: Resolved) -> frozenset[tuple[str, ...]]:
    """Where a format says the sequence length.

    Args:
        settings: the format's entry of `memplan.interop.settings.SETTINGS`.
        resolved: any recipe that it can say.
    """
    values = dict(resolved.values)
    mine = settings(values)
    other = settings({**values, "sequence_length": values["sequence_length"] + 1})
    return frozenset(path for path, value in mine.items() if other[path] != value)
