"""A recipe in the keys of each framework: what a writer sets.

Every function takes the resolved values of a recipe and returns values by path in the framework's file. What a framework
cannot say is found by reading the result back (`memplan.interop.writing`), not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.errors import UnsupportedError
from memplan.interop.torchtune import MODELS as TORCHTUNE_MODELS
from memplan.recipe import Offloading

Settings = dict[tuple[str, ...], Any]
Values = Mapping[str, Any]

# PEFT's own, written out.
LORA_DEFAULTS = {"r": 8, "lora_dropout": 0.0}
# Keys of an adapter config that say nothing of a training run, or that every writer says in a way of its own.
_SAID_OTHERWISE = frozenset({
    "peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "megatron_config", "megatron_core", "target_modules",
})  # fmt: skip
# PEFT 0.21.2's defaults that are neither false nor empty.
_PEFT_DEFAULTS = {"bias": "none", "init_lora_weights": True, "qalora_group_size": 16, "lora_alpha": 8}


def _model(values: Values, to: str) -> str:
    model = values["model"]
    if not isinstance(model, str):
        raise UnsupportedError(f"{to} names its model, and the recipe holds a config", hint="name a model, or a path")
    return model


def _adapter(values: Values, to: str, name: str) -> Mapping[str, Any]:
    """The LoRA config of a recipe; empty without an adapter."""
    peft: Mapping[str, Any] = values.get("peft") or {}
    if peft and peft.get("peft_type") != "LORA":
        raise UnsupportedError(f"{to} has no {name} for {values['method']}", hint="it trains LoRA and full fine-tunes")
    if not peft and values["method"] != "full":
        raise UnsupportedError(
            f"{to} cannot train method {values['method']}", hint="it trains LoRA and full fine-tunes"
        )
    return peft


def _checkpointing(values: Values) -> tuple[bool, bool]:
    """Whether activations are recomputed, and by the reentrant variant."""
    mode = values["activation_checkpointing"]
    return bool(mode), mode == "reentrant"


def _half(values: Values) -> str | None:
    return str(values["autocast_dtype"]) if values["precision"] == "amp" else None


def _evaluation(values: Values, rows: str) -> Settings:
    """What happens between steps: the strategy is written even where it is no, which a template may not say."""
    found: Settings = {("eval_strategy",): str(values.get("eval_strategy", "no"))}
    if found[("eval_strategy",)] != "no":
        found[(rows,)] = values["per_device_eval_batch_size"]
    if "save_strategy" in values:
        found[("save_strategy",)] = str(values["save_strategy"])
    return found


def _trainer(values: Values) -> Settings:
    """What every framework on top of Trainer calls the same."""
    found: Settings = {
        ("per_device_train_batch_size",): values["micro_batch_size"],
        ("gradient_accumulation_steps",): values["gradient_accumulation_steps"],
        ("optim",): values["optim"],
        ("max_grad_norm",): values["max_grad_norm"],
    }
    found |= _evaluation(values, "per_device_eval_batch_size")
    if "eval_accumulation_steps" in values:
        found[("eval_accumulation_steps",)] = values["eval_accumulation_steps"]
    if values.get("optim_args"):
        found[("optim_args",)] = ",".join(f"{key}={value}" for key, value in values["optim_args"].items())
    if values.get("optim_target_modules"):
        found[("optim_target_modules",)] = _plain(values["optim_target_modules"])
    return found


def trl(values: Values) -> Settings:
    """TRL's command line YAML (trl/trainer/{sft_config,model_config}.py, 1.16)."""
    half, (recompute, reentrant) = _half(values), _checkpointing(values)
    found: Settings = {
        ("model_name_or_path",): _model(values, "TRL"),
        ("dtype",): values["dtype"],
        ("bf16",): half == "bfloat16",
        ("fp16",): half == "float16",
        ("max_length",): values["sequence_length"],
        ("packing",): values["packing"],
        ("attn_implementation",): str(values["attn_implementation"]),
        ("gradient_checkpointing",): recompute,
        **_trainer(values),
    }
    if recompute:
        found[("gradient_checkpointing_kwargs", "use_reentrant")] = reentrant
    if values.get("activation_offloading") == Offloading.CHECKPOINTS:
        found[("gradient_checkpointing_kwargs", "offload")] = True
    elif values.get("activation_offloading") == Offloading.SAVED_TENSORS:
        found[("activation_offloading",)] = True
    for key in ("load_in_4bit", "load_in_8bit"):
        found[(key,)] = bool(values.get(key))
    if values.get("load_in_4bit"):
        found[("bnb_4bit_quant_type",)] = values["bnb_4bit_quant_type"]
        found[("use_bnb_nested_quant",)] = values["bnb_4bit_use_double_quant"]
        found[("bnb_4bit_quant_storage",)] = values["bnb_4bit_quant_storage"]
    peft = _adapter(values, "TRL", "config")
    found[("use_peft",)] = bool(peft)
    names = {
        "r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "lora_target_modules",
        "modules_to_save": "lora_modules_to_save", "target_parameters": "lora_target_parameters", "use_dora": "use_dora",
        "use_rslora": "use_rslora",
    }  # fmt: skip
    return {**found, **_lora(peft, names, "TRL")}


def axolotl(values: Values) -> Settings:
    """axolotl's YAML (axolotl/utils/schemas, 0.19)."""
    half, (recompute, reentrant), dtype = _half(values), _checkpointing(values), values["dtype"]
    found: Settings = {
        ("base_model",): _model(values, "axolotl"),
        ("bf16",): half == "bfloat16",
        ("fp16",): half == "float16",
        ("bfloat16",): half is None and dtype == "bfloat16",
        ("float16",): half is None and dtype == "float16",
        ("micro_batch_size",): values["micro_batch_size"],
        ("gradient_accumulation_steps",): values["gradient_accumulation_steps"],
        ("sequence_len",): values["sequence_length"],
        ("sample_packing",): values["packing"],
        ("optimizer",): values["optim"],
        ("max_grad_norm",): values["max_grad_norm"],
        ("gradient_checkpointing",): recompute,
        ("attn_implementation",): str(values["attn_implementation"]),
        **_evaluation(values, "eval_batch_size"),
    }
    if recompute:
        found[("gradient_checkpointing_kwargs", "use_reentrant")] = reentrant
    if values.get("optim_args"):
        found[("optim_args",)] = dict(values["optim_args"])
    if values.get("optim_target_modules"):
        names = _plain(values["optim_target_modules"])
        found[("optim_target_modules",)] = "all_linear" if names == "all-linear" else names
    peft = _adapter(values, "axolotl", "adapter")
    quantized = bool(values.get("load_in_4bit"))
    found[("adapter",)] = ("qlora" if quantized else "lora") if peft else None
    found[("load_in_4bit",)], found[("load_in_8bit",)] = quantized, bool(values.get("load_in_8bit"))
    if not peft:
        return found
    lora = {key: value for key, value in peft.items() if key != "target_modules"}
    linear = peft.get("target_modules") == "all-linear"
    found[("lora_target_linear",)] = linear
    if not linear:
        lora["target_modules"] = peft.get("target_modules")
    found[("peft_autocast_adapter_dtype",)] = values["autocast_adapter_dtype"]
    names = {
        "r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "lora_target_modules",
        "modules_to_save": "lora_modules_to_save", "target_parameters": "lora_target_parameters",
        "use_dora": "peft_use_dora", "rank_pattern": "lora_rank_pattern", "layers_to_transform": "peft_layers_to_transform",
        "init_lora_weights": "peft_init_lora_weights", "use_rslora": "peft_use_rslora", "fan_in_fan_out": "lora_fan_in_fan_out",
        "alpha_pattern": "lora_alpha_pattern", "layers_pattern": "peft_layers_pattern",
        "layer_replication": "peft_layer_replication", "trainable_token_indices": "peft_trainable_token_indices",
        "ensure_weight_tying": "peft_ensure_weight_tying", "exclude_modules": "lora_exclude_modules",
    }  # fmt: skip
    return {**found, **_lora(lora, names, "axolotl")}


def llamafactory(values: Values) -> Settings:
    """LLaMA-Factory's YAML (llamafactory/hparams, 0.9.5)."""
    half, (recompute, reentrant) = _half(values), _checkpointing(values)
    pure = half is None and values["dtype"] == "bfloat16"
    attention = {"eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}
    peft = _adapter(values, "LLaMA-Factory", "finetuning_type")
    found: Settings = {
        ("model_name_or_path",): _model(values, "LLaMA-Factory"),
        ("finetuning_type",): "lora" if peft else "full",
        ("bf16",): half == "bfloat16",
        ("fp16",): half == "float16",
        ("pure_bf16",): pure,
        ("cutoff_len",): values["sequence_length"],
        ("packing",): values["packing"],
        ("flash_attn",): attention[str(values["attn_implementation"])],
        ("disable_gradient_checkpointing",): not recompute,
        ("use_reentrant_gc",): reentrant,
        **_trainer(values),
    }
    bits = 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else None
    found[("quantization_bit",)] = bits
    if bits == 4:
        found[("quantization_type",)] = values["bnb_4bit_quant_type"]
        found[("double_quantization",)] = values["bnb_4bit_use_double_quant"]
    if peft:
        targets = peft.get("target_modules")
        found[("lora_target",)] = "all" if targets in ("all-linear", None) else ",".join(targets or ())
    rest = {key: value for key, value in peft.items() if key != "target_modules"}
    if rest.get("modules_to_save"):
        rest["modules_to_save"] = ",".join(rest["modules_to_save"])
    names = {
        "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "modules_to_save": "additional_target",
        "use_dora": "use_dora", "use_rslora": "use_rslora",
    }  # fmt: skip
    return {**found, **_lora(rest, names, "LLaMA-Factory")}


_BUILDERS = {model: builder for builder, model in reversed(TORCHTUNE_MODELS.items())}
_OPTIMIZERS = {
    "adamw_torch_fused": ("torch.optim.AdamW", True),
    "adamw_torch": ("torch.optim.AdamW", False),
    "sgd": ("torch.optim.SGD", None),
    "paged_adamw_32bit": ("bitsandbytes.optim.PagedAdamW", None),
    "paged_adamw": ("bitsandbytes.optim.PagedAdamW", None),
    "paged_adamw_8bit": ("bitsandbytes.optim.PagedAdamW8bit", None),
    "adamw_8bit": ("bitsandbytes.optim.AdamW8bit", None),
    "adamw_bnb_8bit": ("bitsandbytes.optim.AdamW8bit", None),
}
_ATTENTION_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_NAMES = ("gate_proj", "up_proj", "down_proj")


def torchtune(values: Values) -> Settings:
    """torchtune's YAML (0.6.1)."""
    model = _model(values, "torchtune")
    builder = _BUILDERS.get(model)
    if builder is None:
        raise UnsupportedError(f"torchtune has no builder for {model}", hint="known: " + ", ".join(sorted(_BUILDERS)))
    family = next(name for name in ("code_llama2", "llama3_1", "llama3_2", "llama3_3", "llama3", "llama2", "mistral", "gemma2",
                                    "gemma", "phi3", "phi4", "qwen2_5", "qwen2") if builder.startswith(name))  # fmt: skip
    if values["optim"] not in _OPTIMIZERS:
        raise UnsupportedError(f"torchtune's configs have no optimizer like {values['optim']}")
    component, fused = _OPTIMIZERS[values["optim"]]
    peft = _adapter(values, "torchtune", "builder")
    prefix = ("qlora_" if values.get("load_in_4bit") else "lora_") if peft else ""
    dtypes = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    loss = (
        "torchtune.modules.loss.CEWithChunkedOutputLoss" if values["loss"] == "chunked" else "torch.nn.CrossEntropyLoss"
    )
    found: Settings = {
        ("model", "_component_"): f"torchtune.models.{family}.{prefix}{builder}",
        ("dtype",): dtypes[values["dtype"]],
        ("batch_size",): values["micro_batch_size"],
        ("gradient_accumulation_steps",): values["gradient_accumulation_steps"],
        ("tokenizer", "max_seq_len"): values["sequence_length"],
        ("dataset", "packed"): values["packing"],
        ("optimizer", "_component_"): component,
        ("loss", "_component_"): loss,
        ("enable_activation_checkpointing",): bool(values["activation_checkpointing"]),
        ("clip_grad_norm",): values["max_grad_norm"] or None,
        ("optimizer_in_bwd",): values.get("optimizer_in_backward"),
    }
    if fused is not None:
        found[("optimizer", "fused")] = fused
    if peft:
        targets = peft.get("target_modules")
        names = [*_ATTENTION_NAMES, *_MLP_NAMES] if targets == "all-linear" else list(targets or ("q_proj", "v_proj"))
        if not {*names} <= {*_ATTENTION_NAMES, *_MLP_NAMES, "lm_head"} or 0 < len({*_MLP_NAMES} - {*names}) < 3:
            raise UnsupportedError(
                f"torchtune cannot adapt just {', '.join(names)}", hint="the MLP is adapted as a whole"
            )
        attention = [{"o_proj": "output_proj"}.get(name, name) for name in names if name in _ATTENTION_NAMES]
        found[("model", "lora_attn_modules")] = attention
        found[("model", "apply_lora_to_mlp")] = "gate_proj" in names
        found[("model", "apply_lora_to_output")] = "lm_head" in names
        lora = {"r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_dora": "use_dora"}
        for key, value in _lora(peft, lora, "torchtune").items():
            found[("model", *key)] = value
    return found


def accelerate(values: Values) -> Settings:
    """accelerate's YAML: processes and mixed precision."""
    gpus = values["gpus"]
    return {
        ("compute_environment",): "LOCAL_MACHINE",
        ("distributed_type",): "MULTI_GPU" if gpus > 1 else "NO",
        ("mixed_precision",): {"bfloat16": "bf16", "float16": "fp16", None: "no"}[_half(values)],
        ("num_machines",): 1,
        ("num_processes",): gpus,
    }


def deepspeed(values: Values) -> Settings:
    """DeepSpeed's JSON, without ZeRO."""
    gpus, micro, steps = values["gpus"], values["micro_batch_size"], values["gradient_accumulation_steps"]
    master = str(values["precision"]).startswith("master")
    if not master and values["precision"] != "fp32":
        raise UnsupportedError(
            f"DeepSpeed does not train with precision {values['precision']}",
            hint="it keeps 16-bit weights with an fp32 copy: plan with precision = master, or fp32",
        )
    found: Settings = {
        ("train_micro_batch_size_per_gpu",): micro,
        ("gradient_accumulation_steps",): steps,
        ("train_batch_size",): micro * steps * gpus,
        ("gradient_clipping",): values["max_grad_norm"],
        ("bf16", "enabled"): master and values["dtype"] == "bfloat16",
        ("fp16", "enabled"): master and values["dtype"] == "float16",
        ("zero_optimization", "stage"): 0,
    }
    if values["precision"] == "master-fp32-grads":
        found[("data_types", "grad_accum_dtype")] = "fp32"
    return found


def _lora(peft: Mapping[str, Any], names: Mapping[str, str], to: str) -> Settings:
    """The keys of an adapter config under a framework's names, PEFT's defaults written out.

    Raises:
        UnsupportedError: a key for which the framework has no name.
    """
    if not peft:
        return {}
    for key, value in peft.items():
        if key in names or key in _SAID_OTHERWISE or value in (None, False, {}, []) or value == _PEFT_DEFAULTS.get(key):
            continue
        raise UnsupportedError(
            f"{to} cannot say peft.{key} = {_plain(value)!r}",
            hint=f"leave {key} out, or export to another format",
            code="not_exportable",
        )
    found: Settings = {}
    for key, name in names.items():
        value = peft.get(key, LORA_DEFAULTS.get(key))
        if value not in (None, {}, []) and not (
            key in ("use_dora", "init_lora_weights") and value in (False, True) and key not in peft
        ):
            found[(name,)] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | set | frozenset) else value


SETTINGS: dict[str, Callable[[Values], Settings]] = {
    "trl": trl, "axolotl": axolotl, "llamafactory": llamafactory, "torchtune": torchtune, "accelerate": accelerate,
    "deepspeed": deepspeed,
}  # fmt: skip
