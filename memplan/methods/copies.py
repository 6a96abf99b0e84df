"""Methods that train what is there already, or rows of it: LN tuning and trainable tokens; and adaption prompts.

Source: peft/tuners/{ln_tuning,trainable_tokens,adaption_prompt}/{model,layer}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memplan.architecture import ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods.adaptation import Adaptation, AddedKind
from memplan.methods.apply import adapter_tensor, find_targets, finish, prepare_targets, target_matcher
from memplan.methods.state import ModelState, Weight
from memplan.methods.targets import module_paths, no_match
from memplan.methods.tokens import check_indices, tied_to_embedding, token_weights
from memplan.methods.tuner import Tuner
from memplan.step.adapters import embeddings
from memplan.step.adapters.adaption_prompt import with_adaption_prompt
from memplan.step.site import AdapterSite

_ROWS = Tuner(frozenset({ModuleKind.EMBEDDING, ModuleKind.LINEAR}), lambda target, config: [], "")

# peft/tuners/adaption_prompt/config.py, TRANSFORMERS_MODEL_CONFIG: the attention module and its first projection.
_ADAPTION_PROMPT_TARGETS = {"llama": "self_attn", "mistral": "self_attn", "gpt2": "attn"}
_ADAPTION_PROMPT_DTYPES = {"llama": "q_proj", "mistral": "q_proj", "gpt2": "c_proj"}


def _adaptation(method: str, state: ModelState, config: dict[str, Any], unwalked: str) -> Adaptation:
    return Adaptation(
        method=method,
        peft=config,
        trainable_base=state.trainable_base(),
        added=state.added(),
        buffers=tuple(state.buffers),
        unwalked=(unwalked,) if unwalked else (),
    )


def _check_task(config: dict[str, Any]) -> None:
    """PEFT's wrappers of these tasks need `modules_to_save`, which some config classes lack."""
    if config["task_type"] in ("TOKEN_CLS", "QUESTION_ANS"):
        raise InvalidValueError(
            "peft.task_type",
            config["task_type"],
            f"PEFT fails to wrap {config['peft_type']}, which has no modules_to_save",
        )


def ln_tuning(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """Each targeted module, container or not, becomes a frozen original and a trained copy in its own dtype.

    PEFT casts neither: LNTuningModel overrides `_cast_adapter_dtype` with nothing.
    """
    given = config.get("modules_to_save")
    architecture = state.architecture
    config = prepare_targets(architecture, config)
    matcher = target_matcher(config)
    paths = [path for path in module_paths(architecture) if matcher.targets(path)]
    if not paths:
        raise no_match("peft.target_modules", config["target_modules"], architecture)
    unwalked = ""
    for path in paths:
        for module in architecture.registered:
            if module.path != path and not module.path.startswith(f"{path}."):
                continue
            if module.kind is not ModuleKind.NORM:
                unwalked = "LN tuning of modules that are no norms"
            owner = "ln_tuning_layers.default" + module.path[len(path) :]
            dtype = state.layer_dtype(module)
            for parameter in module.parameters:
                copied = Weight(f"{owner}.{parameter.name}", parameter.shape, dtype=dtype, autocast=False)
                state.add(path, module.path, copied, dtype, AddedKind.COPY)
        state.adapted.add(path)
    finish(state, config, given)
    return _adaptation(method, state, config, unwalked)


def trainable_tokens(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """Rows of the input embedding, or of the modules in `target_modules`.

    A tied output embedding follows the input embedding and adds nothing, unless it is targeted as well.
    """
    _check_task(config)
    architecture = state.architecture
    config = dict(config)
    if config["target_modules"] is None:
        config["target_modules"] = [architecture.input_embeddings]
    indices = check_indices("peft.token_indices", config["token_indices"], architecture)
    targets = find_targets(_ROWS, state, config)
    if not targets:
        raise no_match("peft.target_modules", config["target_modules"], architecture)
    sites: dict[str, AdapterSite] = {}
    plain = True
    for target in targets:
        weights = token_weights(target.module, len(indices))
        state.inject(target.module, weights)
        tensors = tuple(adapter_tensor(weight, state, target.dtype) for weight in weights)
        sites[target.path] = AdapterSite(
            embeddings.trainable_tokens, tensors, creation=embeddings.trainable_tokens_creation
        )
        plain = plain and target.path == architecture.input_embeddings and target.module.class_name == "Embedding"
        for path in tied_to_embedding(architecture):
            owned = tuple(replace(tensor, owner=target.path) for tensor in tensors)
            sites[path] = AdapterSite(embeddings.trainable_tokens_head, owned)
    finish(state, config, None)
    unwalked = "" if plain else "trainable tokens elsewhere than on an embedding that does not scale"
    return replace(_adaptation(method, state, config, unwalked), adapters=sites if plain else {})


def adaption_prompt(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """A prompt [1, adapter_len, hidden] and a gate [1] in the attention of the last `adapter_layers` layers.

    They are created in the dtype of a projection, float32 where that is quantized, and PEFT does not cast them.

    Raises:
        UnsupportedError: PEFT has no adaption prompt for the model type.
        InvalidValueError: no or too many layers.
    """
    _check_task(config)
    architecture = state.architecture
    name = _ADAPTION_PROMPT_TARGETS.get(architecture.model_type)
    if name is None:
        raise UnsupportedError(
            f"PEFT has no adaption prompt for {architecture.model_type}",
            hint="it has one for " + ", ".join(_ADAPTION_PROMPT_TARGETS),
        )
    config = {**config, "target_modules": config["target_modules"] or name}
    for key in ("adapter_len", "adapter_layers"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise InvalidValueError(f"peft.{key}", config[key], "a positive integer")
    owners = [path for path in _in_layer_order(state) if path.endswith(f".{config['target_modules']}")]
    if not owners:
        raise no_match("peft.target_modules", config["target_modules"], architecture)
    if len(owners) < config["adapter_layers"]:
        raise InvalidValueError("peft.adapter_layers", config["adapter_layers"], f"at most the {len(owners)} layers")
    width = architecture.by_path[architecture.input_embeddings].out_features
    sites: dict[str, AdapterSite] = {}
    for path in owners[-config["adapter_layers"] :]:
        module = architecture.by_path[f"{path}.{_ADAPTION_PROMPT_DTYPES[architecture.model_type]}"]
        dtype = DType.FLOAT32 if module.path in state.quantized else state.layer_dtype(module)
        weights = (
            Weight("adaption_prompt", (1, config["adapter_len"], width), dtype=dtype, autocast=False),
            Weight("adaption_gate", (1,), dtype=dtype, autocast=False),
        )
        for weight in weights:
            state.add(path, path, weight, dtype)
        tensors = tuple(adapter_tensor(weight, state, dtype) for weight in weights)
        sites[path] = AdapterSite(with_adaption_prompt, tensors)
    unwalked = _unwalked_prompt(state, config)
    return replace(_adaptation(method, state, config, unwalked), adapters={} if unwalked else sites)


def _unwalked_prompt(state: ModelState, config: dict[str, Any]) -> str:
    architecture = state.architecture
    if architecture.model_type not in ("llama", "mistral") or config["target_modules"] != "self_attn":
        return "the attention over adaption prompts elsewhere than in Llama's and Mistral's self_attn"
    if state.quantized:
        return "the attention over adaption prompts on quantized weights"
    projections = [module for module in architecture.modules if module.path.endswith(".self_attn.q_proj")]
    if any(module.in_features != module.out_features for module in projections):
        return "adaption prompts where heads together are not as wide as hidden states: the run stops"
    return ""


def _in_layer_order(state: ModelState) -> list[str]:
    """Containers in the order in which the forward pass enters them."""
    found: dict[str, None] = {}
    for module in state.architecture.modules:
        found.setdefault(module.path.rpartition(".")[0])
    return list(found)
