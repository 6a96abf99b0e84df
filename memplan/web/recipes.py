"""From what a client sent to a recipe that is safe to compute.

The keys are those of every other surface, read as strictly. What only a local user may do is refused before the file system
is looked at: a model is a card's name or the object of a config.json, never a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.cards import resolve_model
from memplan.recipe import Recipe


def recipe_of(keys: Mapping[str, Any]) -> Recipe:
    """The recipe that a client described.

    Args:
        keys: recipe keys with plain values.

    Raises:
        InputError: as for `Recipe`; and a model that is no card and no config object.
    """
    recipe = Recipe(**keys)
    resolve_model(recipe.model, allow_paths=False)  # raises; a card stays the same card when paths are allowed
    return recipe
