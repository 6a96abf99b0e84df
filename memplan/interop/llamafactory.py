"""LLaMA-Factory's YAML: TrainingArguments with keys of its own.

Sources: llamafactory/hparams/*.py, llamafactory/model/{adapter,patcher}.py, model_utils/{quantization,checkpointing}.py
(0.9.5). It differs from plain Trainer: checkpointing is on and reentrant, trained parameters are cast to float32 unless
`pure_bf16`, nothing is prepared for k-bit training, and 4-bit data are stored in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.interop.draft import Draft, Source
from memplan.interop.trainer import HARMLESS as _TRAINER_HARMLESS
from memplan.interop.trainer import read_padding, read_training

HARMLESS = _TRAINER_HARMLESS | {
    "batch_size",
    "buffer_size",
    "lora_alpha",
    "preprocessing_batch_size",
    "preprocessing_num_workers",
    "use_rslora",
    "use_fast_tokenizer",
    "split_special_tokens",
    "low_cpu_mem_usage",
    "offload_folder",
    "use_kv_cache",
    "infer_dtype",
    "max_new_tokens",
    "max_length",
    "vllm_maxlen",
    "vllm_gpu_util",
    "vllm_max_lora_rank",
    "sglang_tp_size",
    "video_maxlen",
    "export_size",
    "export_device",
    "export_quantization_bit",
    "export_quantization_nsamples",
    "length_penalty",
    "skip_special_tokens",
    "overwrite_cache",
    "ignore_pad_token_for_loss",
    "val_size",
    "quantization_device_map",
    "ray_num_workers",
    "resources_per_worker",
    "placement_strategy",
    "master_port",
    "loraplus_lr_embedding",
    "pissa_iter",
    "include_effective_tokens_per_second",
    "init_special_tokens",
    "moe_aux_loss_coef",
    "eval_on_each_dataset",
}
_MARKS = (
    "finetuning_type",
    "cutoff_len",
    "lora_rank",
    "quantization_bit",
    "dataset_dir",
    "pure_bf16",
    "freeze_trainable_layers",
)
_ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
_REFUSED = {
    "use_unsloth": "Unsloth's kernels",
    "use_unsloth_gc": "Unsloth's checkpointing, which offloads its inputs",
    "upcast_layernorm": "norms in float32",
    "upcast_lmhead_output": "logits in float32",
    "use_galore": "LLaMA-Factory's GaLore",
    "use_apollo": "LLaMA-Factory's Apollo",
    "use_badam": "BAdam",
    "use_adam_mini": "Adam-mini",
    "use_muon": "LLaMA-Factory's Muon",
    "use_dft_loss": "the DFT loss",
    "use_asft_loss": "the ASFT loss",
    "use_eaft_loss": "the EAFT loss",
    "use_llama_pro": "blocks added by LLaMA Pro",
    "shift_attn": "shifted sparse attention",
    "mixture_of_depths": "mixture of depths",
    "resize_vocab": "a vocabulary of another size",
    "add_tokens": "added tokens",
    "add_special_tokens": "added tokens",
    "new_special_tokens_config": "added tokens",
    "train_from_scratch": "training from scratch",
    "use_mca": "Megatron",
    "use_hyper_parallel": "HyperParallel",
    "use_kt": "KTransformers",
    "fp8": "training in fp8",
    "ref_model": "a reference model",
    "reward_model": "a reward model",
    "adapter_name_or_path": "an adapter that is trained on or merged first",
    "pissa_init": "PiSSA's initialization",
    "freeze_language_model": "a frozen language model",
    "use_v1_kernels": "other kernels",
    "loraplus_lr_ratio": "LoRA+",
    "compute_accuracy": "logits kept during evaluation",
    "rope_scaling": "other position embeddings",
}
_STAGES = {"rm": "training of a reward model", "ppo": "PPO", "dpo": "preference training", "kto": "preference training"}


def is_llamafactory(data: Mapping[str, Any]) -> bool:
    """Whether a mapping has keys that only LLaMA-Factory has."""
    return any(key in data for key in _MARKS) or ("stage" in data and "template" in data)


def read(source: Source, draft: Draft) -> None:
    """A training run of LLaMA-Factory."""
    keys = draft.keys
    draft.use(source, "model_name_or_path", "model")
    read_training(source, draft, script_evaluates=True)
    draft.use_or_default(source, "cutoff_len", "sequence_length", "llamafactory")
    _read_packing(source, draft)
    stage = source.text("stage") or "sft"
    if stage in _STAGES:
        draft.refuse(source, "stage", _STAGES[stage])
    _read_checkpointing(source, draft)
    _read_attention(source, draft)
    if source.flag("enable_liger_kernel"):
        draft.use(source, "enable_liger_kernel", "stack", "liger")
        keys["loss"] = "fused_linear"
    method = source.text("finetuning_type") or draft.default("llamafactory", "finetuning_type", "method")
    _read_precision(source, draft, method)
    if method == "lora":
        _read_lora(source, draft)
        _read_quantization(source, draft)
    elif method == "full":
        draft.use(source, "finetuning_type", "method")
    else:
        draft.refuse(source, "finetuning_type", f"finetuning_type {method}")
    source.take(
        *(key for key in source.data if str(key).startswith(("lora_", "additional_", "freeze_", "oft_", "use_dora")))
    )
    for key in ("galore_", "apollo_", "badam_", "swanlab_", "sglang_", "vllm_", "export_", "kt_", "ray_", "profiler_"):
        source.take(*(name for name in source.data if str(name).startswith(key)))
    draft.refuse_all(source, _REFUSED)


def _read_packing(source: Source, draft: Draft) -> None:
    packing = source.flag("packing")
    neat = source.flag("neat_packing")
    if packing is not None:
        draft.use(source, "packing", "packing", packing)
    if neat:
        draft.use(source, "neat_packing", "packing", True)
    elif packing is None and source.get("stage") == "pt":  # hparams/parser.py:520
        draft.use(source, "stage", "packing", True)
    read_padding(draft, "llamafactory")


def _read_checkpointing(source: Source, draft: Draft) -> None:
    source.take("gradient_checkpointing", "activation_checkpointing", "gradient_checkpointing_kwargs", "use_cache")
    off = source.flag("disable_gradient_checkpointing")
    if off:
        draft.use(source, "disable_gradient_checkpointing", "activation_checkpointing", False)
        source.take("use_reentrant_gc")
        return
    if off is None:
        draft.default("llamafactory", "disable_gradient_checkpointing", "activation_checkpointing")
    reentrant = source.flag("use_reentrant_gc")
    if reentrant is None:
        reentrant = draft.default("llamafactory", "use_reentrant_gc", "activation_checkpointing")
        draft.keys["activation_checkpointing"] = "reentrant" if reentrant else "non-reentrant"
        if off is not None:
            draft.note(source, "disable_gradient_checkpointing", "activation_checkpointing")
    else:
        draft.use(source, "use_reentrant_gc", "activation_checkpointing", "reentrant" if reentrant else "non-reentrant")


def _read_attention(source: Source, draft: Draft) -> None:
    name = source.get("flash_attn")
    name = (
        {True: "fa2", False: "disabled", None: "auto"}.get(name, name) if isinstance(name, bool | None) else str(name)
    )
    if name in _ATTENTION:
        draft.use(source, "flash_attn", "attn_implementation", _ATTENTION[name])
    elif name != "auto":
        draft.refuse(source, "flash_attn", f"{name} attention")


def _read_precision(source: Source, draft: Draft, method: str) -> None:
    """The base is loaded in the type that training computes in; trained parameters are cast up unless `pure_bf16`."""
    keys, facts = draft.keys, draft.facts
    facts["loop"] = "llamafactory"
    bf16, fp16, pure = source.flag("bf16"), source.flag("fp16"), source.flag("pure_bf16")
    if pure:
        draft.use(source, "pure_bf16", "dtype", "bfloat16")
        facts["amp"] = None
        return
    half = "bfloat16" if bf16 else "float16" if fp16 else None
    facts["amp"] = half
    if half is None:
        draft.refuse(source, "model_name_or_path", "the load dtype, which LLaMA-Factory guesses without bf16 or fp16")
        keys["dtype"] = "auto"
        return
    # model/adapter.py:313-325: a full fine-tune casts what it trains, everything, to float32.
    dtype = "float32" if method == "full" else half
    draft.use(source, "bf16" if bf16 else "fp16", "dtype", dtype)
    draft.note(source, "bf16" if bf16 else "fp16", "precision")


def _read_lora(source: Source, draft: Draft) -> None:
    config: dict[str, Any] = {"peft_type": "LORA"}
    rank = source.integer("lora_rank")
    if rank is None:
        rank = draft.default("llamafactory", "lora_rank", "peft.r")
    else:
        draft.note(source, "lora_rank", "peft.r")
    config["r"] = rank
    if source.has("lora_dropout"):
        config["lora_dropout"] = source.number("lora_dropout")
        draft.note(source, "lora_dropout", "peft.lora_dropout")
    targets = source.names("lora_target")
    if targets is None:
        targets = draft.default("llamafactory", "lora_target", "peft.target_modules")
    else:
        draft.note(source, "lora_target", "peft.target_modules")
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets or [])
    config["target_modules"] = "all-linear" if names == ["all"] else names
    extra = source.names("additional_target")
    if extra:
        config["modules_to_save"] = [name.strip() for name in extra.split(",")] if isinstance(extra, str) else extra
        draft.note(source, "additional_target", "peft.modules_to_save")
    if source.flag("use_dora"):
        config["use_dora"] = True
        draft.note(source, "use_dora", "peft.use_dora")
    draft.use(source, "finetuning_type" if source.has("finetuning_type") else "lora_rank", "peft", config)
    draft.keys.setdefault("peft", config)


def _read_quantization(source: Source, draft: Draft) -> None:
    bits = source.integer("quantization_bit")
    method = source.text("quantization_method") or "bnb"
    source.take("quantization_type", "double_quantization", "quantization_method")
    if bits is None:
        return
    if method not in ("bnb", "bitsandbytes") or bits not in (4, 8):
        draft.refuse(source, "quantization_bit", f"quantization to {bits} bits by {method}")
        return
    keys = draft.keys
    keys["prepare_model_for_kbit_training"] = draft.default(
        "llamafactory", "prepare_model_for_kbit_training", "prepare_model_for_kbit_training"
    )
    if bits == 8:
        draft.use(source, "quantization_bit", "load_in_8bit", True)
        return
    draft.use(source, "quantization_bit", "load_in_4bit", True)
    draft.use_or_default(source, "quantization_type", "bnb_4bit_quant_type", "llamafactory")
    draft.use_or_default(source, "double_quantization", "bnb_4bit_use_double_quant", "llamafactory")
    compute = draft.facts.get("amp") or keys.get("dtype") or "float32"
    keys["bnb_4bit_compute_dtype"] = keys["bnb_4bit_quant_storage"] = compute
