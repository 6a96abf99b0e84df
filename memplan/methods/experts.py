"""Experts that transformers 5 stores as one parameter: names of transformers 4, and LoRA on `target_parameters`.

Sources: peft/utils/transformers_weight_conversion.py, _convert_peft_config_moe, and
peft/tuners/tuners_utils.py, BaseTuner._inject_parameters (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from typing import Any

from memplan.architecture import Architecture
from memplan.errors import InvalidValueError
from memplan.methods.config import tables
from memplan.methods.lora import expert_weights, rank_of
from memplan.methods.state import ModelState
from memplan.methods.targets import Matcher, all_linear, ends_with_name, is_all_linear, module_paths

# Model types whose experts store [E, in, out]: `use_experts_implementation(is_transposed=True)` in transformers 5.23.
_TRANSPOSED = frozenset({"aria", "gpt_oss", "openai_privacy_filter"})


def rename_experts(architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The config with expert modules of transformers 4 (`gate_proj`, `w1`) turned into `target_parameters`.

    Fused parameters get the rank of all their parts. Other model types come back as they are.

    Raises:
        InvalidValueError: only some of the parts of a fused parameter are targeted.
    """
    renamed = tables()["renamed_experts"].get(architecture.model_type)
    if renamed is None:
        return config
    names: dict[str, str] = renamed["parameters"]
    fused: dict[str, list[str]] = renamed["fused"]
    targets = config["target_modules"]
    if isinstance(targets, str):
        targets = _resolve(architecture, config, names)
        if not targets:
            return config
    parameters = set(config.get("target_parameters") or ())
    ranks = dict(config.get("rank_pattern") or {})
    remaining = []
    parts: dict[str, set[str]] = {name: set() for name in fused}
    for target in targets or ():
        old = next((name for name in names if target == name or target.endswith(f".{name}")), None)
        if old is None:
            remaining.append(target)
            continue
        parameters.add(names[old])
        if names[old] in fused:
            parts[names[old]].add(old)
    for name, required in fused.items():
        missing = set(required) - parts[name]
        if parts[name] and missing:
            raise InvalidValueError(
                "peft.target_modules",
                sorted(parts[name]),
                f"they are fused into {name}: target {', '.join(sorted(missing))} as well",
            )
        if parts[name]:
            ranks[rf".*\.{re.escape(name)}"] = config["r"] * len(required)
    return {
        **config,
        "target_modules": sorted(remaining),
        "target_parameters": sorted(parameters),
        "rank_pattern": ranks,
    }


def _resolve(architecture: Architecture, config: dict[str, Any], names: dict[str, str]) -> set[str]:
    """Last parts of the names that a string `target_modules` means on a model with fused experts."""
    if is_all_linear(config["target_modules"]):
        return {path.rpartition(".")[2] for path in all_linear(architecture, config["task_type"])} | names.keys()
    matcher = Matcher(config, config.get("modules_to_save"))
    parameters = [name for name, _, _ in architecture.named_parameters()]
    matched = {key.rpartition(".")[2] for key in (*module_paths(architecture), *parameters) if matcher.targets(key)}
    for old, new in names.items():
        containers = [name.rpartition(".")[0] for name in parameters if name.rpartition(".")[2] == new]
        if old not in matched and any(matcher.targets(f"{container}.{old}") for container in containers):
            matched.add(old)
    return matched


def inject_parameters(state: ModelState, config: dict[str, Any]) -> list[str]:
    """Put LoRA on the parameters in `target_parameters`; several on one module nest, the first innermost.

    Returns:
        names of the parameters found.

    Raises:
        InvalidValueError: the module has LoRA already, or an option that PEFT refuses here.
    """
    names = frozenset(config.get("target_parameters") or ())
    if not names:
        return []
    architecture = state.architecture
    found: list[str] = []
    for module in architecture.registered:
        hits = [entry for entry in module.parameters if ends_with_name(f"{module.path}.{entry.name}", names)]
        if not hits:
            continue
        if module.path in state.adapted:
            raise InvalidValueError(
                "peft.target_parameters", module.path, "the module is in target_modules too; PEFT adapts it once"
            )
        for key in ("lora_dropout", "fan_in_fan_out", "lora_bias", "use_dora"):
            if config.get(key):
                raise InvalidValueError(f"peft.{key}", config[key], "PEFT has no such option for target_parameters")
        dtype = state.layer_dtype(module)
        for _ in hits:
            state.wrap(module.path)
        for depth, parameter in enumerate(reversed(hits)):
            owner = module.path + ".base_layer" * depth
            name = f"{module.path}.{parameter.name}"
            for weight in expert_weights(
                parameter.shape, rank_of(config, name), transposed=architecture.model_type in _TRANSPOSED
            ):
                state.add(owner, module.path, weight, dtype)
            found.append(name)
    return found
