"""What a recipe asks for before, between and after its steps, and the walk has no rule for."""

from __future__ import annotations

import math

from memplan.architecture import Module, ModuleKind
from memplan.methods import AddedKind, get_method
from memplan.prepare import Prepared
from memplan.recipe import Loss, Stack, Task
from memplan.resolve import Resolved
from memplan.step.generation import EXECUTED_TOKENS
from memplan.step.merging import merges
from memplan.step.site import Site
from memplan.training_step import saves

# Model types whose generation is equal to the trace.
GENERATES = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
        "olmo", "olmo2", "stablelm", "starcoder2", "cohere", "gpt_neox", "gpt2", "gpt_bigcode", "mixtral", "qwen2_moe",
        "qwen3_moe",
    }
)  # fmt: skip

# Model types of which saving everything copies nothing on the device, in the trace. Those whose checkpoints hold experts one
# by one do copy: their stacked weights are taken apart there (transformers 5.23 core_model_loading.py,
# `revert_weight_conversion`, then `contiguous` of every tensor of a shard).
SAVES = frozenset(
    {
        "bart", "bert", "bloom", "cohere", "distilbert", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode",
        "gpt_neox", "gpt_oss", "gptj", "granite", "llama", "mbart", "mistral", "modernbert", "mt5", "olmo", "olmo2", "opt",
        "phi", "phi3", "qwen2", "qwen3", "roberta", "smollm3", "stablelm", "starcoder2", "t5", "xlm-roberta",
    }
)  # fmt: skip


# Initialisations whose loading is walked and equal to the trace.
_DECOMPOSE = ("pissa", "olora", "loftq")


def unsupported_initialisation(resolved: Resolved, prepared: Prepared) -> tuple[list[str], list[str]]:
    """What keeps an adapter that decomposes the base weight from being walked: for the step itself, for its loading alone."""
    init = str(resolved.peft.get("init_lora_weights", True)).lower()
    name = next((entry for entry in _DECOMPOSE if init.startswith(entry)), None)
    step: list[str] = []
    load: list[str] = []
    if name is None:
        return step, load
    if resolved.quantization is not None:
        load.append(
            f"init_lora_weights={init} on quantized weights: PEFT refuses it, or takes their packed form for them"
        )
    elif resolved.peft.get("use_dora"):
        load.append(f"what init_lora_weights={init} borrows together with use_dora while the adapter is made")
    if resolved.peft.get("target_parameters"):
        load.append(f"what init_lora_weights={init} borrows for target_parameters while the adapter is made")
    for module in prepared.architecture.modules:
        site = prepared.sites[module.path]
        if site.adapter is None:
            continue
        swaps = {ModuleKind.CONV1D} if name == "olora" else {ModuleKind.CONV1D, ModuleKind.EMBEDDING}
        if name != "pissa" and module.kind in swaps:
            step.append(f"init_lora_weights={init} on {module.path}, whose two factors PEFT swaps")
            break
        rank = site.adapter.tensors[0].shape[0]
        if module.kind is not ModuleKind.EMBEDDING and rank > min(module.in_features, module.out_features):
            step.append(
                f"init_lora_weights={init} on {module.path}, which has fewer singular values than the rank {rank}"
            )
            break
        if name == "olora" and rank == 1:
            load.append("init_lora_weights=olora of rank 1, whose factor keeps the whole of Q")
            break
    return step, load


def unsupported_saving(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps saving from being walked."""
    if not saves(resolved):
        return []
    if prepared.adaptation.prompt is not None:
        return [f"saving (save_strategy) under {resolved.method}, whose prompt encoder runs while the adapter is saved"]
    model_type = str(resolved.config["model_type"])
    if resolved.peft or model_type in SAVES:
        return []
    return [f"saving (save_strategy) the whole of a {model_type} model: what is copied on the device is not known"]


def unsupported_generation(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps generation from being walked."""
    config, values = resolved.config, resolved.values
    if not values.get("max_new_tokens"):
        return []
    found = []
    if config["model_type"] not in GENERATES or resolved.task is not Task.CAUSAL_LM:
        found.append(f"generation (max_new_tokens) by {config['model_type']} models under a {resolved.task} head")
    if prepared.adaptation.prompt is not None:
        found.append(f"generation (max_new_tokens) under {resolved.method}")
    if values["padding"]:
        found.append("generation (max_new_tokens) from padded prompts")
    for key, walked in (("stack", Stack.TRANSFORMERS), ("loss", Loss.DEFAULT), ("packing", False)):
        if values[key] != walked:
            found.append(f"generation (max_new_tokens) with {key}={values[key]}")
    if values["attn_implementation"] == "flash_attention_2":
        found.append("generation (max_new_tokens) with flash_attention_2")
    if values["max_prompt_length"] + values["max_new_tokens"] > (config.get("sliding_window") or math.inf):
        found.append(f"generation (max_new_tokens) beyond the window of {config['sliding_window']} tokens")
    return found


def unsupported_merging(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps merging from being walked."""
    if not resolved.values.get("merge_and_unload"):
        return []
    adapted = {
        module.path: (module, site)
        for module in prepared.architecture.modules
        if (site := prepared.sites[module.path]).adapter is not None
    }
    # Layers that are alike are asked for once.
    alike: dict[tuple[Site, int, int], Module] = {}
    for module, site in adapted.values():
        alike.setdefault((site, module.in_features, module.out_features), module)
    unmerged = [module.path for (site, _, _), module in alike.items() if not merges(module, site)]
    found = []
    if not adapted or unmerged:
        where = f" on {unmerged[0]}" if unmerged else ""
        found.append(f"merging {resolved.method}{where} into the base (merge_and_unload){_why(resolved, unmerged)}")
    if any(entry.kind is not AddedKind.ADAPTER for entry in prepared.adaptation.added):
        found.append("merging (merge_and_unload) with modules_to_save, whose copies take the place of the base's")
    biases = [
        any(parameter.name == "bias" for parameter in module.parameters)
        for module, site in adapted.values()
        if site.adapter is not None and any(entry.name == "lora_B.bias" for entry in site.adapter.tensors)
    ]
    if not all(biases):
        found.append("merging (merge_and_unload) lora_bias into layers without a bias, which PEFT refuses")
    elif biases and resolved.quantization is not None:
        found.append("merging (merge_and_unload) lora_bias into quantized layers, whose biases take its type")
    if resolved.peft.get("target_parameters"):
        found.append("merging (merge_and_unload) with target_parameters")
    if (
        resolved.quantization is not None
        and resolved.quantization.scheme.is_4bit_bitsandbytes
        and resolved.values["keep_outputs"] is True
    ):
        found.append(
            "merging (merge_and_unload) into 4-bit weights with keep_outputs=true: the last step's graph may keep weights that "
            "have been replaced"
        )
    return found


def _why(resolved: Resolved, unmerged: list[str]) -> str:
    """What PEFT itself does where there is no rule, as far as it is known."""
    peft_type = str(get_method(resolved.method).peft_type)
    if unmerged and resolved.quantization is not None and peft_type in ("IA3", "ADALORA", "LOHA", "LOKR"):
        return ", which PEFT refuses for quantized weights"
    if unmerged and peft_type == "OFT":
        return ": in the adapter's own type PEFT leaves autograd's graph behind, and with it the adapter"
    return ""


def unplayed_growth(resolved: Resolved) -> list[str]:
    """What a cache that grows by many tokens does to the allocator's segments; live and allocated memory are exact."""
    values = resolved.values
    if (values.get("max_new_tokens") or 0) <= EXECUTED_TOKENS + 1 or values["expandable_segments"]:
        return []
    return [
        f"reserved memory while a key/value cache grows by more than {EXECUTED_TOKENS} tokens, unless expandable_segments "
        "is true; allocated memory is exact"
    ]
