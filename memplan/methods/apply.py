"""Applies a PEFT method that wraps layers: find the targets, add the tensors, copy `modules_to_save`, mark what trains.

Source: peft/tuners/tuners_utils.py, BaseTuner.inject_adapter, and the wrappers of peft/peft_model.py (PEFT 0.21.2).
"""

from __future__ import annotations

from typing import Any

from memplan.architecture import Architecture, ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods import lora
from memplan.methods.adaptation import Adaptation
from memplan.methods.config import config_class, default_target_modules, tables
from memplan.methods.experts import inject_parameters, rename_experts
from memplan.methods.state import ModelState, Weight
from memplan.methods.targets import Matcher, all_linear, is_all_linear, module_paths, no_layer, no_match
from memplan.methods.tokens import save_token_rows, tied_to_embedding
from memplan.methods.tuner import Config, Target, Tuner
from memplan.step.site import AdapterSite, AdapterTensor, LoraSite, adapter_tensor_name

# peft/peft_model.py: PeftModelForSequenceClassification adds these before it looks for targets,
# PeftModelForTokenClassification and PeftModelForQuestionAnswering when the adapters have been cast.
_CLASSIFIER_NAMES = ["classifier", "score"]
_QUESTION_ANSWERING_NAMES = ["qa_outputs"]
_HEADS_SAVED_LAST = ("TOKEN_CLS", "QUESTION_ANS")

_EMBEDDING_NAMES = ("embed_tokens", "lm_head")  # peft/utils/constants.py, EMBEDDING_LAYER_NAMES


def head_names(config: Config) -> list[str]:
    """Module names that PEFT adds to `modules_to_save` for the task."""
    if "modules_to_save" not in config:
        return []
    if config["task_type"] in ("SEQ_CLS", "TOKEN_CLS"):
        return _CLASSIFIER_NAMES
    return _QUESTION_ANSWERING_NAMES if config["task_type"] == "QUESTION_ANS" else []


def apply_tuner(method: str, tuner: Tuner, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """The model under a method that wraps layers.

    Args:
        method: canonical name.
        tuner: what the method adds to one layer.
        state: the base model; changed in place.
        config: resolved adapter config.

    Raises:
        InvalidValueError: targets or `modules_to_save` that match nothing, a module that the method cannot wrap, a
            rank larger than the layer.
    """
    architecture = state.architecture
    if tuner.check is not None:
        tuner.check(config)
    given_saves = config.get("modules_to_save")
    named = config["target_modules"] is not None and not is_all_linear(config["target_modules"])
    config = prepare_targets(architecture, config)
    targets = find_targets(tuner, state, config)
    check_ranks(tuner, architecture, targets, config, named=named)
    shared = tuner.shared(targets, config) if tuner.shared is not None and targets else []
    for owner, weight in shared:
        state.add(owner, "", weight, targets[0].dtype)
    common = tuple(adapter_tensor(weight, state, targets[0].dtype, owner) for owner, weight in shared)
    sites: dict[str, LoraSite] = {}
    adapters: dict[str, AdapterSite] = {}
    unwalked: list[str] = []
    for target in targets:
        weights = tuner.weights(target, config)
        state.inject(target.module, weights)
        rewrite = tuner.rewrite(target, config) if tuner.rewrite is not None else None
        if rewrite is not None:
            tensors = tuple(adapter_tensor(weight, state, target.dtype) for weight in weights) + common
            options = tuner.options(target, config) if tuner.options is not None else {}
            creation = tuner.creation(target, config) if tuner.creation is not None else None
            adapters[target.path] = AdapterSite(rewrite, tensors, tuple(options.items()), creation)
        else:
            unwalked.append(tuner.unwalked or lora.unwalked(target, config))
        if tuner is lora.TUNER:
            site = lora.site(target, config, state.cast(weights[0], target.dtype))
            if site is not None:
                sites[target.path] = site
    if tuner is lora.TUNER and inject_parameters(state, config):
        unwalked.append("LoRA on expert parameters")
    elif not targets:
        raise no_layer(config, architecture) or no_match("peft.target_modules", config["target_modules"], architecture)
    state.train_biases(config.get("bias") or "none")
    saved = finish(state, config, given_saves)
    if config.get("trainable_token_indices") is not None:
        unwalked.append("trainable tokens")
    if any(target.path.startswith(f"{path}.") for target in targets for path in saved):
        unwalked.append("an adapter inside a module of modules_to_save")

    def is_saved(path: str) -> bool:
        return any(path == s or path.startswith(f"{s}.") for s in saved)

    return Adaptation(
        method=method,
        peft=config,
        trainable_base=state.trainable_base(),
        added=state.added(),
        buffers=tuple(state.buffers),
        lora={path: site for path, site in sites.items() if not is_saved(path)},
        adapters={path: site for path, site in adapters.items() if not is_saved(path)},
        shares_trained=any(tensor.trainable for tensor in common),
        unwalked=tuple(dict.fromkeys(unwalked)),
    )


def adapter_tensor(weight: Weight, state: ModelState, layer_dtype: DType, owner: str = "") -> AdapterTensor:
    """A tensor that a method adds, as the step sees it: the adapter's name left out of its own."""
    name = adapter_tensor_name(weight.name)
    trainable = weight.parameter and weight.trainable
    return AdapterTensor(name, weight.shape, state.cast(weight, layer_dtype), trainable, owner)


def finish(state: ModelState, config: dict[str, Any], given: list[str] | None) -> list[str]:
    """Copy `modules_to_save`, and the heads that PEFT trains by task; returns the paths copied.

    Raises:
        InvalidValueError: a name in `modules_to_save` that matches nothing.
    """
    names = [*(given or ()), *head_names(config)]
    tied: list[str] = []
    if config.get("ensure_weight_tying") and given:
        names, tied = tie_saves(state.architecture, names)
    late = [name for name in names if config["task_type"] in _HEADS_SAVED_LAST and name not in (given or ())]
    saved = state.save_modules([name for name in names if name not in late])
    saved += state.save_modules(late, saved=saved, after_casts=True)
    saved += state.save_modules(tied, tied=True)
    for name in given or ():
        if not any(path.endswith(name) for path in module_paths(state.architecture)):
            raise no_match("peft.modules_to_save", name, state.architecture)
    save_token_rows(state, config)
    if "modules_to_save" in config and names:
        config["modules_to_save"] = names
    return saved


def tie_saves(architecture: Architecture, names: list[str]) -> tuple[list[str], list[str]]:
    """With `ensure_weight_tying`: names to copy, and modules that share the copy of the input embedding.

    Source: peft/tuners/lora/model.py, LoraModel._add_modules_to_save_to_tie.
    """
    tied = tied_to_embedding(architecture)
    if not tied or not any(name.rpartition(".")[2] in _EMBEDDING_NAMES for name in names):
        return names, []
    kept = [name for name in names if not any(Matcher({"target_modules": [name]}, None).targets(path) for path in tied)]
    if not any(architecture.input_embeddings.endswith(name) for name in kept):
        kept.append(architecture.input_embeddings)
    return kept, tied


def prepare_targets(architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The config with PEFT's own targets filled in, heads protected, and `all-linear` spelled out."""
    config = dict(config)
    peft_type = config["peft_type"]
    if peft_type == "LORA":
        config = rename_experts(architecture, config)
    if config["target_modules"] is None:
        config["target_modules"] = default_target_modules(peft_type, architecture.model_type)
        if config["target_modules"] is None and not config.get("target_parameters"):
            names = list(dict.fromkeys(module.name for module in architecture.modules))
            raise InvalidValueError(
                "peft.target_modules",
                None,
                f"PEFT has no default for {architecture.model_type} in {config_class(peft_type)}: name the modules",
                hint="its modules: " + ", ".join(names[:24]),
            )
    if peft_type == "IA3" and config["feedforward_modules"] is None:
        config["feedforward_modules"] = tables()["target_modules"]["IA3_FEEDFORWARD"].get(architecture.model_type)
        if config["feedforward_modules"] is None:
            raise InvalidValueError(
                "peft.feedforward_modules", None, f"PEFT has no default for {architecture.model_type}: name them, or []"
            )
    targets = config["target_modules"]
    if is_all_linear(targets):
        config["target_modules"] = all_linear(architecture, config["task_type"])
    return config


def target_matcher(config: Config) -> Matcher:
    """The matcher of a prepared config; no adapter goes on what `modules_to_save` holds when PEFT looks for targets."""
    protected = list(config.get("modules_to_save") or ())
    if config["task_type"] == "SEQ_CLS":
        protected += head_names(config)
    return Matcher(config, protected)


def find_targets(tuner: Tuner, state: ModelState, config: dict[str, Any]) -> list[Target]:
    """Modules that the config targets, in the order in which PEFT wraps them.

    Raises:
        InvalidValueError: one of them is of a kind that the method cannot wrap.
    """
    if config["target_modules"] is None:
        return []
    architecture = state.architecture
    matcher = target_matcher(config)
    for path in sorted(architecture.containers):
        if path not in architecture.by_path and matcher.targets(path):
            raise InvalidValueError(
                "peft.target_modules",
                path,
                "it is a container of modules, not a layer",
                hint="name the layers inside it",
            )
    found: list[Target] = []
    for module in architecture.registered:
        if not module.path or not matcher.targets(module.path):
            continue
        if module.kind not in tuner.kinds:
            kinds = ", ".join(sorted(kind.value for kind in tuner.kinds))
            raise InvalidValueError(
                "peft.target_modules",
                module.path,
                f"it is a {module.class_name or module.kind.value}; {config['peft_type']} adapts: {kinds}",
            )
        if module.path in state.quantized and state.packed and not tuner.packed:
            raise InvalidValueError(
                "peft.target_modules",
                module.path,
                f"its weight is packed in 4 bits, which PEFT's {config['peft_type']} cannot adapt",
                hint="load the model in 16 bits, or use a method such as lora, ia3, vera or oft",
            )
        quantized = module.path in state.quantized
        found.append(Target(module, state.layer_dtype(module), quantized, quantized and state.packed))
    return found


def check_ranks(
    tuner: Tuner, architecture: Architecture, targets: list[Target], config: Config, *, named: bool
) -> None:
    """Refuse a rank larger than the layer, where it must be a slip: B A would hold more than the layer itself.

    PEFT builds such layers. It is no slip on a classification head with a few labels, nor where not the user but
    PEFT chose the layers (`all-linear`, its defaults) and others among them are wide enough.

    Args:
        tuner: the method.
        architecture: the base model.
        targets: the layers.
        config: resolved adapter config.
        named: whether the user chose the layers.

    Raises:
        InvalidValueError: names the layer.
    """
    if not tuner.rank:
        return
    ranks = {"r": config[tuner.rank], "rank_pattern": config.get("rank_pattern")}
    narrow = [
        target
        for target in targets
        if target.kind is not ModuleKind.CONV
        and target.path.partition(".")[0] not in architecture.head_modules
        and lora.rank_of(ranks, target.path) > min(target.in_features, target.out_features)
    ]
    if not narrow or (not named and len(narrow) < len(targets)):
        return
    target = narrow[0]
    limit = min(target.in_features, target.out_features)
    raise InvalidValueError(
        f"peft.{tuner.rank}",
        lora.rank_of(ranks, target.path),
        f"at most {limit} for {target.path}, which is {target.in_features} x {target.out_features}",
    )
