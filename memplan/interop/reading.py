"""What was read from config files: recipe keys, and what became of every key in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memplan.errors import InputError
from memplan.recipe import Recipe
from memplan.resolve_evaluation import EVALUATION_KEYS, ROWS

if TYPE_CHECKING:
    from memplan.estimate import Estimate

_OF_EVALUATION = frozenset({"eval_strategy", ROWS, *EVALUATION_KEYS})


@dataclass(frozen=True, slots=True)
class UsedKey:
    """A key that decided a recipe key.

    Attributes:
        key: as the file has it, nested keys with dots.
        recipe_key: what it became; `unsupported` where no recipe key can say it.
        value: as the file has it.
        file: name of the file or object.
        line: 1-based; 0 for an object.
    """

    key: str
    recipe_key: str
    value: Any
    file: str
    line: int

    @property
    def place(self) -> str:
        """`file:line`, or the file alone."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class DefaultUsed:
    """A default of a framework that decided a recipe key.

    Attributes:
        key: the framework's name of it.
        recipe_key: what it became.
        value: the framework's value.
        framework: whose default it is.
        version_range: versions that have it, e.g. `>=1.0`.
        source: where it stands.
    """

    key: str
    recipe_key: str
    value: Any
    framework: str
    version_range: str
    source: str


@dataclass(frozen=True)
class Reading:
    """Config files as a recipe, with an account of every key.

    Attributes:
        keys: recipe keys; the model may be missing where no file names it.
        format: of the file; several are joined with ` + `.
        used: keys that decided something.
        defaults: framework defaults that decided something.
        ignored: keys that have no bearing on memory.
        unknown_memory_like: keys that memplan does not know and whose names sound as if they had, with file and line.
        unsupported: what the files ask for and memplan has no rule for; with any, no verdict is `fits`.
        follows: keys that the framework makes what another one is, where nothing says otherwise.
        open_length: why no file says the sequence length of a training loop, which then must be given.
    """

    keys: Mapping[str, Any]
    format: str
    used: tuple[UsedKey, ...] = ()
    defaults: tuple[DefaultUsed, ...] = ()
    ignored: tuple[str, ...] = ()
    unknown_memory_like: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    open_length: str = ""
    follows: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; what is unsupported or unknown goes with it (`Recipe.uncovered`).

        Raises:
            InputError: no file names a model, or a value cannot stand there.
        """
        return self.recipe_with()

    def recipe_with(self, **changes: Any) -> Recipe:
        """The recipe with keys added or replaced.

        Raises:
            InputError: still no model, or a value cannot stand there.
        """
        keys = {**self.keys_beside(changes), **changes}
        if keys.get("model") is None and self.format != "recipe":
            raise InputError(
                f"no model is named in what was read ({self.format})",
                hint="add the model, for example --model mistralai/Mistral-7B-v0.1, or its config.json",
            )
        texts = self.uncovered
        if self.open_length and keys.get("sequence_length") is None:
            texts = (*texts, self.open_length)
        origins = {
            entry.recipe_key: f"{entry.framework} {entry.version_range}: {entry.source}"
            for entry in self.defaults
            if entry.recipe_key in keys and entry.recipe_key not in changes
        }
        return Recipe(**keys).with_uncovered(texts).with_origins(origins)

    def keys_beside(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The keys as they hold beside those of `changes`: what follows one follows it, and no evaluation has no batch."""
        keys = {
            key: changes.get(self.follows[key], value) if key in self.follows else value
            for key, value in self.keys.items()
        }
        if changes.get("eval_strategy") == "no":
            return {key: value for key, value in keys.items() if key not in _OF_EVALUATION}
        return keys

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Everything that keeps the answer from being whole: unsupported parts and unknown memory-like keys."""
        unknown = (f"{text}: an unknown key that sounds like memory" for text in self.unknown_memory_like)
        return (*self.unsupported, *unknown)

    def estimate(self, **changes: Any) -> Estimate:
        """The estimate of the recipe with `changes`; never `fits` where something is unsupported or unknown."""
        from memplan.engine import estimate

        return estimate(self.recipe_with(**changes))
