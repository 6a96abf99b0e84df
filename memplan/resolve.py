"""From what the user said to a complete recipe: every default filled in, each with where it came from.

Rules that cross keys live here, those about dtypes in `memplan.resolve_dtypes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.cards import ResolvedModel, resolve_model
from memplan.catalog.gpus import Gpu, get_gpu
from memplan.dtypes import DType
from memplan.errors import InputError, InvalidValueError
from memplan.families import WITHOUT_SDPA, check_task, family_of, model_types
from memplan.families.positions import max_positions
from memplan.filler import USER, Filler
from memplan.methods import canonical_method, get_method
from memplan.methods.targets import compile_pattern, is_plain
from memplan.quantization import Quantization
from memplan.quantization_config import is_names
from memplan.recipe import Attention, Loss, Precision, Recipe, Stack, Task
from memplan.resolve_dtypes import (
    autocast_dtype,
    precision_policy,
    quantization_and_checkpoint_dtype,
    weights_dtype,
    with_compute_dtype,
)
from memplan.resolve_evaluation import HINTS, fill_evaluation
from memplan.resolve_in_backward import WITHOUT_CLIPPING, check_in_backward
from memplan.resolve_offloading import fill_offloading
from memplan.stack_defaults import UNSLOTH_LORA, UNSLOTH_MODEL_TYPES, stack_defaults

DEFAULT_SEQUENCE_LENGTH = 2048
DEFAULT_TEXT_TOKENS = 32

# Class name in a config's `architectures` to task; longest ending first.
_TASK_OF_CLASS = (
    ("ForSequenceClassification", Task.SEQUENCE_CLASSIFICATION),
    ("ForTokenClassification", Task.TOKEN_CLASSIFICATION),
    ("ForImageClassification", Task.IMAGE_CLASSIFICATION),
    ("ForMaskedLM", Task.MASKED_LM),
    ("ForPreTraining", Task.PRE_TRAINING),
    ("ForCausalLM", Task.CAUSAL_LM),
    ("LMHeadModel", Task.CAUSAL_LM),
    ("Model", Task.FEATURE_EXTRACTION),
)

_TASK_OF_PEFT = {
    "CAUSAL_LM": Task.CAUSAL_LM,
    "SEQ_CLS": Task.SEQUENCE_CLASSIFICATION,
    "TOKEN_CLS": Task.TOKEN_CLASSIFICATION,
    "SEQ_2_SEQ_LM": Task.SEQ2SEQ_LM,
    "FEATURE_EXTRACTION": Task.FEATURE_EXTRACTION,
}


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing left open.

    Attributes:
        recipe: what the user said.
        values: every key that has a meaning for this run, plain JSON values, in the recipe's order.
        sources: for each key of `values`, `user` or where the default comes from.
        model: the resolved model; `config` is its config with the recipe's changes (added tokens, tying).
        quantization: of the base weights, or None.
        autocast: dtype of `torch.autocast`, or None.
        gpu: the GPU of the recipe, or None.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    model: ResolvedModel
    config: Mapping[str, Any]
    task: Task
    method: str
    peft: Mapping[str, Any]
    dtype: DType
    precision: Precision
    quantization: Quantization | None
    autocast: DType | None
    gpu: Gpu | None

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def uncovered(self) -> tuple[str, ...]:
        """What the run has beyond its keys (`Recipe.uncovered`)."""
        return self.recipe.uncovered


def resolve(recipe: Recipe, *, allow_paths: bool = True, described_only: bool = True) -> Resolved:
    """Fill every default of `recipe` in.

    Args:
        recipe: what the user said.
        allow_paths: whether the model may be a path.
        described_only: refuse a model type that no family describes; False is for the trace, which needs none.

    Raises:
        UnknownNameError: an unknown model, method, GPU, dtype.
        InvalidValueError, InputError: keys that contradict each other.
    """
    said = recipe.said()
    filler = Filler(said, stack_defaults(recipe))
    model = resolve_model(recipe.model, allow_paths=allow_paths, described_only=described_only)
    filler.values["model"], filler.sources["model"] = recipe.model, USER
    method = canonical_method(recipe.method, recipe.peft)
    filler.fill("method", method, "default: every parameter is trained" if method == "full" else "peft.peft_type")
    filler.values["method"] = method
    peft = _peft(recipe, method, filler, str(model.config["model_type"]))

    task = _task(recipe, model, peft, filler)
    gpu = get_gpu(recipe.gpu) if recipe.gpu else None
    quantization, loaded_as = quantization_and_checkpoint_dtype(recipe, method, model, filler)
    if recipe.dtype == "auto":  # from_pretrained(dtype="auto")
        said["dtype"] = str(loaded_as)
    precision = precision_policy(recipe, loaded_as, quantization, filler)
    dtype = weights_dtype(recipe, method, precision, loaded_as, quantization, filler)
    autocast = autocast_dtype(recipe, precision, dtype, gpu, filler)
    quantization = with_compute_dtype(recipe, method, quantization, autocast or dtype, filler)
    _training(recipe, method, model, quantization, filler)
    check_in_backward(filler, autocast)
    if gpu is not None:
        filler.values["gpu"], filler.sources["gpu"] = gpu.id, USER
    filler.fill("gpus", 1, "default: one GPU")
    filler.fill("expandable_segments", False, "default: PyTorch's allocator as it comes")
    if recipe.empty_cache_steps is not None:
        filler.fill("empty_cache_steps", None, USER)
    config = _config(recipe, model, filler)
    _refuse_unused(said, filler, method, task)
    for key, origin in recipe.origins.items():
        if filler.sources.get(key) == USER:
            filler.sources[key] = origin
    return Resolved(
        recipe=recipe,
        values=filler.values,
        sources=filler.sources,
        model=model,
        config=config,
        task=task,
        method=method,
        peft=peft,
        dtype=dtype,
        precision=precision,
        quantization=quantization,
        autocast=autocast,
        gpu=gpu,
    )


# Keys that become part of another one, and keys whose False changes nothing.
_FLAT_KEYS = frozenset({"lora_r", "lora_dropout", "target_modules", "num_virtual_tokens"})
_HARMLESS_WHEN_FALSE = frozenset(
    {"load_in_4bit", "load_in_8bit", "prepare_model_for_kbit_training", "merge_and_unload", "activation_offloading"}
)


def _refuse_unused(said: Mapping[str, Any], filler: Filler, method: str, task: Task) -> None:
    """A key that was said and changes nothing is a misunderstanding, and the answer would be one to another question."""
    for key, value in said.items():
        if key in filler.values or key in _FLAT_KEYS or value is None:
            continue
        if key in _HARMLESS_WHEN_FALSE and not value:
            continue
        reason = {
            "num_labels": f"a {task} head has no labels",
            "autocast_adapter_dtype": f"method {method} has no PEFT adapter",
            "prepare_model_for_kbit_training": f"it prepares a quantized base for an adapter; method is {method}",
            "packed_text_tokens": "only packing under flash_attention_2 borrows memory for each text",
            "llm_int8_skip_modules": "nothing is quantized by bitsandbytes: say load_in_4bit or load_in_8bit",
            **HINTS,
        }.get(
            key, "base weights are not in bitsandbytes' 4 bits: say load_in_4bit" if key.startswith("bnb_4bit") else ""
        )
        raise InputError(f"{key} is given, but nothing in this recipe uses it", hint=reason or "leave it out")


def _peft(recipe: Recipe, method: str, filler: Filler, model_type: str) -> dict[str, Any]:
    """The adapter config as far as it was said: `peft`, the flat keys, and what the method's name sets."""
    known = get_method(method)
    flat = {
        "lora_r": recipe.lora_r,
        "lora_dropout": recipe.lora_dropout,
        "target_modules": list(recipe.target_modules)
        if isinstance(recipe.target_modules, tuple)
        else recipe.target_modules,
        "num_virtual_tokens": recipe.num_virtual_tokens,
    }
    given = {key: value for key, value in flat.items() if value is not None}
    if known.peft_type is None:
        if recipe.peft or given:
            name = "peft" if recipe.peft else next(iter(given))
            raise InputError(
                f"{name} is given, but method {method!r} is not a PEFT method",
                hint="name a method such as lora, or leave it out",
            )
        return {}
    config = {**known.options, **(recipe.peft or {})}
    for flat_key, value in given.items():
        key = "r" if flat_key == "lora_r" else flat_key
        if key in config and config[key] != value:
            raise InputError(
                f"{flat_key} is given twice: {value!r} beside peft.{key} = {config[key]!r}", hint="give it once"
            )
        config[key] = value
    if recipe.stack is Stack.UNSLOTH and method in ("lora", "qlora") and model_type in UNSLOTH_MODEL_TYPES:
        config = {**UNSLOTH_LORA, **config}
    if method == "qlora" and config.get("target_modules") is None and config.get("target_parameters") is None:
        config["target_modules"] = "all-linear"
    _check_peft(config)
    config.pop("peft_type", None)
    filler.values["peft"] = {"peft_type": known.peft_type, **config}
    filler.sources["peft"] = USER if recipe.peft or given else "PEFT's defaults for the method"
    filler.fill("autocast_adapter_dtype", True, "PEFT: get_peft_model(autocast_adapter_dtype=True)")
    return config


def _check_peft(config: Mapping[str, Any]) -> None:
    """The kinds of value that an adapter_config.json holds, for keys that several methods share."""
    for key, value in config.items():
        name = f"peft.{key}"
        if value is None:
            continue
        if key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(value, Mapping) or not all(isinstance(number, int | float) for number in value.values()):
                raise InvalidValueError(name, value, 'patterns of module names with a number each, like {"q_proj": 16}')
            for pattern in value:
                if not is_plain(pattern):
                    compile_pattern(name, pattern)
        elif key.endswith("dropout") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidValueError(name, value, "a number from 0 to 1")
        elif key == "task_type" and not isinstance(value, str):
            raise InvalidValueError(name, value, "a name such as CAUSAL_LM")
        elif key in ("target_parameters", "modules_to_save") and not is_names(value):
            raise InvalidValueError(name, value, "a list of names")


def _task(recipe: Recipe, model: ResolvedModel, peft: Mapping[str, Any], filler: Filler) -> Task:
    model_type = model.config["model_type"]
    described = model_type in model_types()
    task_type = peft.get("task_type")
    if recipe.task is None and task_type in _TASK_OF_PEFT:
        default, source = _TASK_OF_PEFT[str(task_type)], "peft.task_type"
    else:
        tasks = family_of(model_type).tasks_of(model_type) if described else _tasks_of_undescribed(model.config)
        default, source = _task_of_config(model.config, tasks)
    task = Task(filler.fill("task", default, source))
    if described:
        check_task(model_type, task)
    classified = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION)
    if task in classified:
        filler.fill("num_labels", model.config.get("num_labels") or 2, "the config, transformers' default is 2")
    return task


def _tasks_of_undescribed(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The heads that a trace can put on a model that no family describes, the likeliest first."""
    usual = Task.SEQ2SEQ_LM if config.get("is_encoder_decoder") else Task.CAUSAL_LM
    return usual, Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION


def _task_of_config(config: Mapping[str, Any], tasks: tuple[Task, ...]) -> tuple[Task, str]:
    for name in config.get("architectures") or ():
        for ending, task in _TASK_OF_CLASS:
            if str(name).endswith(ending) and task in tasks:
                return task, f"the config's architectures: {name}"
    return tasks[0], f"default of {config['model_type']} models"


def _config(recipe: Recipe, model: ResolvedModel, filler: Filler) -> dict[str, Any]:
    config = dict(model.config)
    added = filler.fill("num_added_tokens", 0, "default: the vocabulary as it is")
    if added:
        holder = config
        if "text_config" in config:
            holder = config["text_config"] = dict(config["text_config"])
        if "vocab_size" not in holder:
            raise InvalidValueError("num_added_tokens", added, "0 where the config names no vocab_size")
        holder["vocab_size"] = holder["vocab_size"] + added
    if recipe.tie_word_embeddings is not None:
        config["tie_word_embeddings"] = recipe.tie_word_embeddings
        filler.values["tie_word_embeddings"], filler.sources["tie_word_embeddings"] = recipe.tie_word_embeddings, USER
    if "num_labels" in filler.values:
        config["num_labels"] = filler.values["num_labels"]
    return config


def _attention(model_type: str, filler: Filler) -> None:
    if model_type in WITHOUT_SDPA:
        value = filler.fill("attn_implementation", Attention.EAGER, f"transformers has no sdpa for {model_type}")
        if value is Attention.SDPA:
            raise InvalidValueError("attn_implementation", "sdpa", f"transformers has no sdpa for {model_type} models")
    else:
        filler.fill("attn_implementation", Attention.SDPA, "transformers' default where the model has it")


def _training(
    recipe: Recipe, method: str, model: ResolvedModel, quantization: Quantization | None, filler: Filler
) -> None:
    if quantization is not None and get_method(method).peft_type is None:
        raise InvalidValueError(
            "method",
            method,
            f"{quantization.scheme} weights are trained through an adapter only (transformers' Trainer refuses them "
            "otherwise): use a PEFT method such as qlora",
        )
    prepared = quantization is not None
    if prepared:
        filler.fill("prepare_model_for_kbit_training", True, "PEFT's recipe for quantized bases")
    if recipe.trainable is not None:
        filler.fill("trainable", recipe.trainable, USER)
    filler.fill("optim", "adamw_torch_fused", "TrainingArguments, transformers 5 with torch >= 2.8")
    for key in ("optim_args", "optim_target_modules", "stack_version", "target_length"):
        if getattr(recipe, key) is not None:
            filler.fill(key, None, USER)
    if recipe.optimizer_in_backward is not None:
        filler.fill("optimizer_in_backward", None, USER)
    clipping = WITHOUT_CLIPPING if recipe.optimizer_in_backward else (1.0, "TrainingArguments")
    filler.fill("max_grad_norm", *clipping)
    filler.fill("gradient_accumulation_steps", 1, "TrainingArguments")
    filler.fill("micro_batch_size", 1, "default")
    _lengths(model, filler)
    filler.fill("padding", False, "default: every sequence is full")
    filler.fill("packing", False, "default")
    prepares = prepared and filler.values["prepare_model_for_kbit_training"]
    filler.fill(
        "activation_checkpointing",
        "reentrant" if prepares else False,
        "prepare_model_for_kbit_training turns it on, in torch's default variant" if prepares else "TrainingArguments",
    )
    if method in ("prefix_tuning", "cartridge") and filler.values["activation_checkpointing"]:
        raise InvalidValueError(
            "activation_checkpointing",
            filler.values["activation_checkpointing"],
            f"only false: PEFT refuses {method}, which lives in the key/value cache, on a checkpointed model",
        )
    _attention(str(model.config["model_type"]), filler)
    _texts(filler)
    filler.fill("loss", Loss.DEFAULT, "default: the model's own loss")
    filler.fill("stack", Stack.TRANSFORMERS, "default")
    filler.fill("torch_version", "2.13", "default: the version that memplan's tests trace")
    fill_offloading(filler)
    filler.fill("keep_outputs", False, "Trainer drops the outputs before backward")
    filler.fill("use_cache", False, "TrainingArguments")
    fill_evaluation(filler, limit=max_positions(model.config))


def _texts(filler: Filler) -> None:
    """How long the texts of a packed row are; only flash_attention_2 borrows memory for each."""
    values = filler.values
    if values["packing"] and values["attn_implementation"] is Attention.FLASH_ATTENTION_2:
        filler.fill("packed_text_tokens", DEFAULT_TEXT_TOKENS, "default: shorter than texts under a chat template")


def _lengths(model: ResolvedModel, filler: Filler) -> None:
    """Sequence length, within what the model's positions allow."""
    limit = max_positions(model.config)
    virtual = filler.values.get("peft", {}).get("num_virtual_tokens") or 0
    if limit is None or limit - virtual >= DEFAULT_SEQUENCE_LENGTH:
        filler.fill("sequence_length", DEFAULT_SEQUENCE_LENGTH, "default")
    else:
        filler.fill("sequence_length", max(limit - virtual, 1), f"default, within the model's {limit} positions")
    for key in ("sequence_length", "target_length"):
        length = filler.values.get(key)
        if limit is not None and length is not None and length + virtual > limit:
            beside = f" less {virtual} virtual tokens" if virtual else ""
            raise InvalidValueError(key, length, f"at most the model's {limit} positions{beside}")


__all__ = ["Resolved", "resolve"]
