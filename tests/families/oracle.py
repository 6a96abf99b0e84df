"""What transformers builds on the meta device, in the words of `memplan.architecture`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from memplan.architecture import Architecture, ModuleKind
from memplan.cards import card_ids, load_card
from memplan.families import Head, describe, family_of
from memplan.model_config import normalise_config
from memplan.recipe import Task

AUTO_CLASSES = {
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
    Task.MASKED_LM: transformers.AutoModelForMaskedLM,
    Task.SEQ2SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    Task.IMAGE_CLASSIFICATION: transformers.AutoModelForImageClassification,
    Task.FEATURE_EXTRACTION: transformers.AutoModel,
    Task.PRE_TRAINING: transformers.AutoModelForPreTraining,
    Task.IMAGE_TEXT_TO_TEXT: transformers.AutoModelForImageTextToText,
    Task.SPEECH_SEQ2SEQ: transformers.AutoModelForSpeechSeq2Seq,
}


def cards_of(*model_types: str) -> list[str]:
    """Ids of the cards whose config has one of these model types."""
    return [card_id for card_id in card_ids() if load_card(card_id).config["model_type"] in model_types]


def cases_of(*model_types: str) -> list[tuple[str, Task]]:
    """Every card of these model types with every task of its family."""
    return [
        (card_id, task)
        for model_type in model_types
        for card_id in cards_of(model_type)
        for task in family_of(model_type).tasks_of(model_type)
    ]


def _tasks(model_type: str) -> tuple[Task, ...]:
    return family_of(model_type).tasks_of(model_type)


def on_meta(config: Mapping[str, Any], head: Head) -> nn.Module:
    """The model class of the task, built by transformers on the meta device."""
    keys = copy.deepcopy(dict(config))
    tied = keys.get("tie_word_embeddings")
    model_config = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    if head.task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        model_config.num_labels = head.num_labels
    with torch.device("meta"):
        model = AUTO_CLASSES[head.task].from_config(model_config)
        if model_config.model_type in ("t5", "mt5") and tied is False and hasattr(model, "lm_head"):
            # T5Config ties whatever it is told; a checkpoint that has its own lm_head keeps it when it is loaded.
            model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    assert isinstance(model, nn.Module)
    return model


@lru_cache(maxsize=8)
def _card_on_meta(card_id: str, head: Head) -> nn.Module:
    return on_meta(load_card(card_id).config, head)


def assert_card_equals(card_id: str, head: Head) -> None:
    """Fail unless the description of a card is what transformers builds from it."""
    assert_same(describe(normalise_config(load_card(card_id).config), head), _card_on_meta(card_id, head))


def assert_config_equals(config: Mapping[str, Any], head: Head) -> None:
    """Fail unless the description of a config is what transformers builds from it."""
    assert_same(describe(normalise_config(config), head), on_meta(config, head))


def assert_same(architecture: Architecture, model: nn.Module) -> None:
    """Compare parameters, modules, buffers, embeddings and ties, name by name."""
    assert _parameters(architecture) == _real_parameters(architecture, model)
    assert architecture.total_elements == sum(parameter.numel() for parameter in model.parameters())
    assert _modules(architecture) == _real_modules(model)
    assert [module.path for module in architecture.registered] == list(_real_modules(model))
    assert list(_parameters(architecture)) == list(_real_parameters(architecture, model))
    assert {b.path: (b.shape, b.dtype, b.persistent) for b in architecture.buffers} == _real_buffers(model)
    paths = {id(module): path for path, module in model.named_modules()}
    assert architecture.input_embeddings == paths[id(model.get_input_embeddings())]
    output = model.get_output_embeddings()
    assert architecture.output_embeddings == (paths[id(output)] if output is not None else None)
    assert architecture.base_model_prefix == model.base_model_prefix
    for path, count in architecture.layer_groups.items():
        assert len(model.get_submodule(path)) == count
    for path, class_name in architecture.class_names.items():
        assert type(model.get_submodule(path)).__name__ == class_name
    top = {name for name, _ in model.named_children()}
    assert set(architecture.head_modules) <= top - {model.base_model_prefix}


def _parameters(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(int, parameter.shape)) for name, _, parameter in architecture.named_parameters()}


def _real_parameters(architecture: Architecture, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameters by name; of the names of a tied one, that under which the architecture knows it."""
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    ours = _parameters(architecture)
    found: dict[str, tuple[int, ...]] = {}
    for key, aliases in names.items():
        known = [name for name in aliases if name in ours]
        found[known[0] if known else aliases[0]] = shapes[key]
        for alias in aliases:
            assert alias in known[:1] or alias in architecture.tied, f"{alias} is tied in the model"
    return found


def _modules(architecture: Architecture) -> dict[str, tuple[str, int, int, str]]:
    return {
        module.path: (
            module.kind.value,
            int(module.in_features),
            int(module.out_features),
            "" if module.kind is ModuleKind.BARE else module.class_name,
        )
        for module in architecture.modules
    }


def _real_modules(model: nn.Module) -> dict[str, tuple[str, int, int, str]]:
    found = {}
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            kind, sizes = _kind(module)
            found[path] = (kind.value, *sizes, "" if kind is ModuleKind.BARE else type(module).__name__)
    return found


def _kind(module: nn.Module) -> tuple[ModuleKind, tuple[int, int]]:
    if isinstance(module, nn.Linear):
        return ModuleKind.LINEAR, (module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        return ModuleKind.CONV1D, (module.nx, module.nf)
    if isinstance(module, nn.Embedding):
        return ModuleKind.EMBEDDING, (module.num_embeddings, module.embedding_dim)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ModuleKind.CONV, (0, 0)
    if "norm" in type(module).__name__.lower():
        return ModuleKind.NORM, (0, 0)
    return ModuleKind.BARE, (0, 0)


def _real_buffers(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """Buffers by name; those that `from_pretrained` keeps in float32 are not, yet, in a model made from a config."""
    saved = model.state_dict().keys()
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return {
        name: (
            tuple(buffer.shape),
            "float32" if name.rpartition(".")[2] in kept else str(buffer.dtype).removeprefix("torch."),
            name in saved,
        )
        for name, buffer in model.named_buffers()
    }
