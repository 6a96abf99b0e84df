"""From what a client sent to a recipe that is safe to compute.

The keys are those of every other surface, read as strictly. What only a local user may do is refused before the file system
is looked at: a model is a card's name or the object of a config.json, never a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.cards import ModelCard, resolve_model
from memplan.errors import InputError, InvalidValueError
from memplan.recipe import Recipe
from memplan.web.patterns import check_patterns
from memplan.web.problems import Problem, ProblemError

# The work grows with the layers; the largest published model that memplan has a card of has 126.
MAX_LAYERS = 128
_LAYER_KEYS = (("depth", "encoder_layers", "num_hidden_layers", "num_layers"), ("decoder_layers", "num_decoder_layers"))
_LOCALLY = "`memplan` on your own machine takes it"

# Keys whose texts may be matched against module names as regular expressions.
_PATTERN_KEYS = (
    "peft",
    "target_modules",
    "trainable",
    "llm_int8_skip_modules",
    "quantization_config",
    "optim_args",
    "optim_target_modules",
)


def recipe_of(keys: Mapping[str, Any]) -> Recipe:
    """The recipe that a client described.

    Args:
        keys: recipe keys with plain values.

    Raises:
        InputError: as for `Recipe` and `accept`.
    """
    recipe = Recipe(**keys)
    accept(recipe)
    return recipe


def accept(recipe: Recipe) -> None:
    """Refuse what this service does not compute; looks at no file.

    Raises:
        InputError: a model that is no card and no config object; a pattern that could take forever; more layers than this
            service walks.
    """
    check_patterns({key: getattr(recipe, key) for key in _PATTERN_KEYS})
    model = resolve_model(recipe.model, allow_paths=False)  # raises; a card stays the same card when paths are allowed
    check_patterns({"model": model.config.get("quantization_config")})
    layers = _layers_of(model.config)
    if layers > MAX_LAYERS:
        raise InvalidValueError(
            "model", f"{layers} layers", f"at most {MAX_LAYERS} layers in this service", hint=_LOCALLY
        )


def card_of(name: str) -> ModelCard:
    """The model card that the `id` of an address names.

    Raises:
        ProblemError: there is no such card.
    """
    try:
        card = resolve_model(name, allow_paths=False).card
    except InputError as error:
        raise ProblemError(Problem(404, error.code, error.message, error.hint, "id")) from None
    assert card is not None
    return card


def _layers_of(config: Mapping[str, Any]) -> int:
    """Layers of a model, towers and decoders included."""
    own = sum(max((config[key] for key in keys if isinstance(config.get(key), int)), default=0) for keys in _LAYER_KEYS)
    return own + sum(_layers_of(part) for part in config.values() if isinstance(part, Mapping))
