"""Model families: each describes one forward pass; parameters and step both come from that description.

    describe(config, head)       the exact modules and parameters, without torch
    run(builder, config, head)   the same description on a tape

A family is a module with `FAMILY: Family`. `_MODULES` says which module knows which `model_type`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

from memplan.architecture import Architecture
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.families.registration import registered_children
from memplan.recipe import Stack, Task
from memplan.step.builder import Builder
from memplan.step.settings import StepSettings
from memplan.step.tensor import Tensor
from memplan.torchtune.models import is_built


@dataclass(frozen=True, slots=True)
class Head:
    """What sits on the base model.

    Attributes:
        task: which head.
        num_labels: classes of a classification head.
    """

    task: Task
    num_labels: int = 2


@dataclass(frozen=True, slots=True)
class Family:
    """How to run and name the models of one family.

    Attributes:
        forward: called with (builder, normalised config, head); returns the loss, or the output where there is no loss.
        base_model_prefix: attribute under which the headless model sits inside a model with a head.
        tasks: heads that the family has, its usual one first.
        walked: model types (within this family) whose step is verified against the trace of the real model.
        walked_tasks: heads for which it is.
        walked_int8: whether it is on weights in 8 bits, too; not where 8-bit layers have biases beside half-precision inputs,
            whose type the first forward gives them.
        folds: whether equal layers may be executed once; not where all of them read one tensor that needs a gradient.
        registered_children: the order in which its modules are registered, where `registration.toml` does not say it.
        missing: heads that transformers does not have for a model type of this family.
    """

    forward: Callable[[Builder, Mapping[str, Any], Head], Tensor]
    base_model_prefix: str
    tasks: tuple[Task, ...]
    walked: frozenset[str] = frozenset()
    walked_tasks: frozenset[Task] = frozenset({Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION})
    walked_int8: bool = True
    folds: bool = True
    registered_children: Mapping[str, tuple[str, ...]] | None = None
    missing: Mapping[str, frozenset[Task]] = field(default_factory=dict)

    def tasks_of(self, model_type: str) -> tuple[Task, ...]:
        """The heads that a model type of this family has, its usual one first."""
        missing = self.missing.get(model_type, frozenset())
        return tuple(task for task in self.tasks if task not in missing)


# Model classes without `_supports_sdpa = True` (transformers 5.23 modeling files): asking them for sdpa is an error.
WITHOUT_SDPA = frozenset({"bloom", "deberta", "deberta-v2", "gemma2", "gpt_oss", "gptj"})

_MODULES: dict[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt2",
    "gpt_neox": "gpt_neox",
    "gptj": "gptj",
    "opt": "opt",
    "bloom": "bloom",
    "falcon": "falcon",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "deberta": "deberta",
    "deberta-v2": "deberta",
    "modernbert": "modernbert",
    "vit": "vit",
    "t5": "t5",
    "mt5": "t5",
    "bart": "bart",
    "mbart": "bart",
    "whisper": "whisper",
    "qwen2": "llama",
    "qwen3": "llama",
    "smollm3": "llama",
    "granite": "llama",
    "phi3": "phi3",
    "olmo": "olmo",
    "olmo2": "olmo",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "phi": "phi",
    "cohere": "cohere",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "mixtral": "mixtral",
    "qwen2_moe": "mixtral",
    "qwen3_moe": "mixtral",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "gpt_oss": "gpt_oss",
    "gemma3": "gemma3",
    "llava": "llava",
    "qwen2_5_vl": "qwen2_5_vl",
}


def model_types() -> list[str]:
    """Every `model_type` that has a family."""
    return sorted(_MODULES)


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`.

    Raises:
        UnknownNameError: no family describes it.
    """
    module = _MODULES.get(model_type)
    if module is None:
        raise UnknownNameError("model_type", model_type, _MODULES)
    family = import_module(f"memplan.families.{module}").FAMILY
    assert isinstance(family, Family)
    return family


def family_under(stack: Stack, config: Mapping[str, Any], task: Task) -> Family:
    """The family that describes a config's model under a head as a stack builds it: torchtune has models of its own.

    Raises:
        UnknownNameError: no family describes it.
    """
    if stack is Stack.TORCHTUNE and task is Task.CAUSAL_LM and is_built(config):
        family = import_module("memplan.families.torchtune").FAMILY
        assert isinstance(family, Family)
        return family
    return family_of(str(config["model_type"]))


def check_task(model_type: str, task: Task) -> None:
    """Refuse a head that the family does not have.

    Raises:
        InvalidValueError: names the heads that exist.
    """
    tasks = family_of(model_type).tasks_of(model_type)
    if task not in tasks:
        raise InvalidValueError("task", str(task), f"{model_type} models have: {', '.join(tasks)}")


def describe(
    config: Mapping[str, Any], head: Head, *, stack: Stack = Stack.TRANSFORMERS, adapters: bool = False
) -> Architecture:
    """The modules of a normalised config with a head, cached.

    Args:
        config: of the model.
        head: which head.
        stack: who builds the model.
        adapters: whether it is built with adapters in its layers, where the stack does that.

    Raises:
        UnknownNameError: no family for the config's `model_type`.
        InvalidValueError: the family has no such head.
    """
    return _describe(json.dumps(config, sort_keys=True), head, stack, adapters)


@lru_cache(maxsize=256)
def _describe(config_json: str, head: Head, stack: Stack, adapters: bool) -> Architecture:
    config = json.loads(config_json)
    model_type = config["model_type"]
    check_task(model_type, head.task)
    family = family_under(stack, config, head.task)
    builder = Builder(StepSettings(batch=1, sequence=8, stack=str(stack), adapters=adapters))
    builder.grad_enabled = False
    family.forward(builder, config, head)
    return Architecture(
        model_type=model_type,
        task=head.task,
        config=config,
        modules=tuple(builder.modules.values()),
        buffers=tuple(builder.buffers),
        tied=builder.tied,
        base_model_prefix=family.base_model_prefix,
        input_embeddings=builder.input_path,
        output_embeddings=builder.output_path,
        layer_groups=builder.layer_groups,
        class_names=builder.class_names,
        head_modules=tuple(builder.head_modules),
        frozen=frozenset(builder.frozen),
        registered_children=family.registered_children or registered_children(config),
    )
