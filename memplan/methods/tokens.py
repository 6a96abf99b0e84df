"""Trainable tokens: chosen rows of an embedding, as a method and as LoRA's `trainable_token_indices`.

Symbols: N chosen tokens, H hidden size.

Sources (PEFT 0.21.2): tuners/trainable_tokens/{layer,model}.py; utils/other.py, set_additional_trainable_modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memplan.architecture import Architecture, Module, ModuleKind
from memplan.errors import InvalidValueError
from memplan.methods.state import ModelState, Weight
from memplan.methods.targets import no_match


def token_weights(module: Module, count: int) -> list[Weight]:
    """The trained rows [N, H] and the buffer of what they were."""
    width = module.out_features if module.kind is ModuleKind.EMBEDDING else module.in_features
    return [
        Weight("trainable_tokens_delta.default", (count, width)),
        Weight("trainable_tokens_original.default", (count, width), parameter=False),
    ]


def tied_to_embedding(architecture: Architecture) -> list[str]:
    """Paths of modules that share the input embedding's weight."""
    embedding = f"{architecture.input_embeddings}.weight"
    return [name.rpartition(".")[0] for name, source in architecture.tied.items() if source == embedding]


def check_indices(key: str, indices: object, architecture: Architecture) -> list[int]:
    """The token indices, each inside the vocabulary.

    Args:
        key: under which they were given, for errors.
        indices: what was given.
        architecture: the model.

    Raises:
        InvalidValueError: not a list of token indices.
    """
    embedding = architecture.by_path.get(architecture.input_embeddings)
    if embedding is None or embedding.kind is not ModuleKind.EMBEDDING:
        raise InvalidValueError(key, indices, f"a {architecture.model_type} model has no tokens")
    rows = embedding.in_features
    if not isinstance(indices, Sequence) or isinstance(indices, str) or not indices:
        raise InvalidValueError(key, indices, "a list of token indices")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < rows:
            raise InvalidValueError(key, index, f"an index below the vocabulary of {rows}")
    return list(indices)


def save_token_rows(state: ModelState, config: Mapping[str, Any]) -> None:
    """LoRA's `trainable_token_indices`: a list for the input embedding, or a mapping from module names to lists.

    A module tied to the input embedding follows it and adds nothing.

    Raises:
        InvalidValueError: no such module, or one that `modules_to_save` trains whole.
    """
    wanted = config.get("trainable_token_indices")
    if wanted is None:
        return
    architecture = state.architecture
    layers = wanted if isinstance(wanted, Mapping) else {architecture.input_embeddings.rpartition(".")[2]: wanted}
    tied = tied_to_embedding(architecture)
    for name, indices in layers.items():
        if name in (config.get("modules_to_save") or ()):
            raise InvalidValueError("peft.trainable_token_indices", name, "modules_to_save trains it whole already")
        modules = [module for module in architecture.modules if module.path.endswith(name)]
        if not modules:
            raise no_match("peft.trainable_token_indices", name, architecture)
        same = all(indices == other for other in layers.values())
        for module in modules:
            if module.path in tied and same and len(layers) > 1:
                continue
            count = len(check_indices("peft.trainable_token_indices", indices, architecture))
            dtype = state.layer_dtype(module)
            for weight in token_weights(module, count):
                state.add(f"{module.path}.token_adapter", module.path, weight, dtype)
