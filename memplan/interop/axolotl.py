"""axolotl's YAML.

Sources: axolotl/utils/schemas/*.py, axolotl/utils/config/__init__.py (resolve_dtype), axolotl/loaders/{model,adapter}.py,
axolotl/core/builders/base.py (0.19.0). `bf16: true` loads the base in bfloat16 and autocasts as well; `bfloat16: true` loads
it so and does not autocast. Evaluation has training's batch unless `eval_batch_size` is said.

Known limits:
    A full fine-tune under sdpa or eager attention keeps embeddings, head and norms in float32, which no recipe key says.
"""

from __future__ import annotations

from typing import Any

from memplan.interop.draft import Draft, Source
from memplan.interop.evaluating import read_axolotl as read_evaluation
from memplan.interop.evaluating import read_saving
from memplan.interop.trainer import HARMLESS as _TRAINER_HARMLESS
from memplan.interop.trainer import optim_args, read_padding

HARMLESS = _TRAINER_HARMLESS | {
    "adam_beta3",
    "adam_epsilon2",
    "batch_size",
    "dataloader_pin_memory",
    "dataset_exact_deduplication",
    "dataset_keep_in_memory",
    "dataset_processes",
    "dataset_shard_idx",
    "dataset_shard_num",
    "gc_steps",
    "lora_alpha",
    "lora_alpha_pattern",
    "low_cpu_mem_usage",
    "lora_fan_in_fan_out",
    "loss_watchdog_patience",
    "max_prompt_len",
    "min_sample_len",
    "mean_resizing_embeddings",
    "merge_method",
    "num_dataset_shards_to_save",
    "pad_to_multiple_of",
    "pad_to_sequence_len",
    "peft_use_rslora",
    "sample_packing_bin_size",
    "sample_packing_eff_est",
    "sample_packing_group_size",
    "sample_packing_sequentially",
    "sample_packing_mp_start_method",
    "shuffle_before_merging_datasets",
    "strict",
    "fix_untrained_tokens",
    "experimental_skip_move_to_device",
    "is_falcon_derived_model",
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "is_qwen_derived_model",
    "tokenizer_config",
    "total_num_tokens",
    "curriculum_sampling",
    "multipack_real_batches",
    "pretrain_multipack_buffer_size",
    "eot_tokens",
    "group_by_length",
    "ddp",
    "excess_length_strategy",
    "streaming_multipack_buffer_size",
    "embeddings_skip_upcast",
    "lora_model_dir",
}

_ATTENTION_FLAGS = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
}
_REFUSED = {
    "deepspeed": "DeepSpeed",
    "fsdp": "FSDP",
    "fsdp_config": "FSDP",
    "fp8": "training in fp8",
    "rl": "preference training",
    "reward_model": "training of a reward model",
    "process_reward_model": "training of a reward model",
    "selective_checkpointing": "selective checkpointing",
    "activation_offloading": "activations offloaded to the CPU",
    "layer_offloading": "layers offloaded to the CPU",
    "batch_flattening": "flattened batches",
    "chunked_cross_entropy": "axolotl's chunked cross entropy",
    "tiled_mlp": "the tiled MLP",
    "quantize_moe_experts": "quantized experts",
    "unfrozen_parameters": "a run that trains some parameters only",
    "lora_mlp_kernel": "axolotl's LoRA kernels",
    "lora_qkv_kernel": "axolotl's LoRA kernels",
    "lora_o_kernel": "axolotl's LoRA kernels",
    "lora_embedding_kernel": "axolotl's LoRA kernels",
    "qat": "training for quantization",
    "torch_compile": "torch.compile, which fuses kernels and keeps other tensors",
    "gptq": "a GPTQ base",
    "neftune_noise_alpha": "NEFTune's noise on the embeddings",
    "relora": "ReLoRA",
    "lora_on_cpu": "an adapter on the CPU",
    "model_quantization_config": "another quantization",
    "bnb_config_kwargs": "other options of bitsandbytes",
    "ple_cpu_offload": "embeddings in CPU memory",
    "fp32_norms": "norms in float32",
    "use_kernels": "kernels from the Hub",
    "resize_token_embeddings_to_32x": "a padded vocabulary",
    "use_onebitllms": "1.58-bit layers",
    "lisa_n_layers": "LISA",
    "flash_attn_cross_entropy": "flash-attn's cross entropy",
    "flash_attn_fuse_mlp": "flash-attn's fused MLP",
    "unsloth_cross_entropy_loss": "Unsloth's kernels",
    "unsloth_lora_mlp": "Unsloth's kernels",
    "unsloth_lora_qkv": "Unsloth's kernels",
    "unsloth_lora_o": "Unsloth's kernels",
    "trainer_cls": "another Trainer class",
    "gpu_memory_limit": "a base spread by a memory limit",
    "max_memory": "a base spread by a memory limit",
    "eval_sequence_len": "evaluation of other lengths",
    "do_causal_lm_eval": "generation during evaluation",
    "generate_samples": "generation during training",
    "peft": "LoftQ, which quantizes the base itself",
    "added_tokens_overrides": "other embeddings",
    "use_pose": "PoSE",
    "shrink_embeddings": "a smaller vocabulary",
    "device_map": "a device map",
    "fused_attn_kernel": "a fused attention kernel",
    "merge_lora": "a merged adapter",
    "use_ema": "a moving average of the weights beside them",
    "auto_find_batch_size": "batches that become smaller whenever memory runs out",
    "sdpa_varlen": "attention over flattened batches",
    "freeze_mm_modules": "a frozen vision tower",
    "overrides_of_model_config": "another config of the model",
    "overrides_of_model_kwargs": "other options while the model is loaded",
}
# Special tokens that a base model's vocabulary has, by a part of its name in lower case (tokenizer_config.json of each).
_IN_VOCABULARY = {
    "llama-3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "llama-2": ("<s>", "</s>", "<unk>"),
    "mistral": ("<s>", "</s>", "<unk>"),
    "mixtral": ("<s>", "</s>", "<unk>"),
    "tinyllama": ("<s>", "</s>", "<unk>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "gemma": ("<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "phi": ("<|endoftext|>",),
    "pythia": ("<|endoftext|>",),
    "gpt2": ("<|endoftext|>",),
}
_DEGREES = {
    "dp_shard_size": "sharded data parallelism",
    "dp_replicate_size": "replicated data parallelism",
    "context_parallel_size": "context parallelism",
    "sequence_parallel_degree": "sequence parallelism",
    "tensor_parallel_size": "tensor parallelism",
    "expert_parallel_size": "expert parallelism",
}
_LORA = {
    "lora_rank_pattern": "rank_pattern",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_dora": "use_dora",
    "peft_layer_replication": "layer_replication",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
    "lora_exclude_modules": "exclude_modules",
}


def read(source: Source, draft: Draft) -> None:
    """A fine-tuning run of axolotl."""
    draft.use(source, "base_model", "model")
    source.take("base_model_config")
    if "Classification" in (source.text("model_type") or ""):
        draft.refuse(source, "model_type", f"the head of {source.get('model_type')}")
    _read_tokens(source, draft)
    _read_precision(source, draft)
    _read_batch(source, draft)
    _read_optimizer(source, draft)
    _read_checkpointing(source, draft)
    _read_attention(source, draft)
    _read_adapter(source, draft)
    _read_loss(source, draft)
    draft.refuse_all(source, _REFUSED, "no")
    for key, text in _DEGREES.items():
        if (source.integer(key) or 1) > 1:
            draft.refuse(source, key, f"{text} over {source.get(key)} GPUs")


def _read_tokens(source: Source, draft: Draft) -> None:
    """Tokens that are added to the vocabulary, for which the embeddings grow (loaders/{tokenizer,model}.py)."""
    added = source.names("tokens")
    if added:
        draft.use(source, "tokens", "num_added_tokens", 1 if isinstance(added, str) else len(dict.fromkeys(added)))
    special = source.sub("special_tokens")
    wanted = [str(name) for key in special.data for name in _flat(special.get(key))]
    model = str(source.get("base_model") or "").lower()
    known = {name for part, names in _IN_VOCABULARY.items() if part in model for name in names}
    unknown = [name for name in dict.fromkeys(wanted) if name not in known]
    if unknown:
        shown = ", ".join(unknown[:8])
        draft.refuse(source, "special_tokens", f"special tokens that the vocabulary may not have yet: {shown}")


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _read_precision(source: Source, draft: Draft) -> None:
    bf16, fp16 = source.get("bf16"), source.flag("fp16")
    if bf16 == "auto":
        bf16 = not fp16
    elif bf16 is not None:
        bf16 = source.flag("bf16")
    source.take("bf16", "fp16", "bfloat16", "float16", "float32", "tf32")
    facts, keys = draft.facts, draft.keys
    facts["loop"] = "axolotl"
    if bf16 or source.flag("bfloat16"):
        key = "bf16" if bf16 else "bfloat16"
        draft.use(source, key, "dtype", "bfloat16")
        facts["amp"] = "bfloat16" if bf16 else None
    elif fp16 or source.flag("float16") or source.flag("load_in_8bit"):
        key = "fp16" if fp16 else "float16" if source.flag("float16") else "load_in_8bit"
        draft.use(source, key, "dtype", "float16")
        facts["amp"] = "float16" if fp16 else None
    else:
        keys["dtype"] = draft.default("axolotl", "dtype", "dtype")
        facts["amp"] = None
    if facts["amp"]:
        draft.note(source, key, "precision")


def _read_batch(source: Source, draft: Draft) -> None:
    draft.use_or_default(source, "micro_batch_size", "micro_batch_size", "axolotl")
    batch, micro = source.integer("batch_size"), draft.keys["micro_batch_size"]
    if batch and not source.has("gradient_accumulation_steps"):
        draft.use(source, "batch_size", "gradient_accumulation_steps", max(batch // micro, 1))
    else:
        draft.use_or_default(source, "gradient_accumulation_steps", "gradient_accumulation_steps", "axolotl")
    draft.use_or_default(source, "sequence_len", "sequence_length", "axolotl")
    packing = source.flag("sample_packing")
    if packing is not None:
        draft.use(source, "sample_packing", "packing", packing)
    read_padding(draft, "axolotl")
    read_evaluation(source, draft)
    read_saving(source, draft)


def _read_optimizer(source: Source, draft: Draft) -> None:
    draft.use_or_default(source, "optimizer", "optim", "axolotl")
    if source.has("optim_args"):
        draft.use(source, "optim_args", "optim_args", optim_args(source))
    if source.has("optim_target_modules"):
        names = source.names("optim_target_modules")
        draft.use(
            source, "optim_target_modules", "optim_target_modules", "all-linear" if names == "all_linear" else names
        )
    draft.use_or_default(source, "max_grad_norm", "max_grad_norm", "axolotl")


def _read_checkpointing(source: Source, draft: Draft) -> None:
    value = source.get("gradient_checkpointing")
    kwargs = source.sub("gradient_checkpointing_kwargs")
    if value in ("offload", "offload_disk"):
        draft.refuse(source, "gradient_checkpointing", "checkpointed activations offloaded from the GPU")
        value = True
    elif value is not None:
        value = source.flag("gradient_checkpointing")
    reentrant = kwargs.flag("use_reentrant")
    if value is None:
        draft.keys["activation_checkpointing"] = draft.default(
            "axolotl", "gradient_checkpointing", "activation_checkpointing"
        )
        return
    if value and reentrant is not None:
        draft.note(kwargs, "use_reentrant", "activation_checkpointing")
    elif value:
        reentrant = draft.default("axolotl", "use_reentrant", "activation_checkpointing")
    mode = ("reentrant" if reentrant else "non-reentrant") if value else False
    draft.use(source, "gradient_checkpointing", "activation_checkpointing", mode)


def _read_attention(source: Source, draft: Draft) -> None:
    said = "attn_implementation" if source.has("attn_implementation") else None
    flag = next((key for key in _ATTENTION_FLAGS if source.flag(key)), None)
    source.take(*_ATTENTION_FLAGS)
    name = source.text("attn_implementation") or (_ATTENTION_FLAGS[flag] if flag else None)
    key = said or flag
    if key is None or name is None:
        return
    if name in ("eager", "sdpa", "flash_attention_2"):
        draft.use(source, key, "attn_implementation", name)
    else:
        draft.refuse(source, key, f"{name} attention")


def _read_adapter(source: Source, draft: Draft) -> None:
    adapter = source.text("adapter")
    keys = (
        "adapter", "lora_r", "lora_dropout", "lora_target_modules", "lora_target_linear", "load_in_4bit", "load_in_8bit",
        "peft_autocast_adapter_dtype", *_LORA,
    )  # fmt: skip
    source.take(*keys)
    if adapter not in ("lora", "qlora"):
        if adapter:
            draft.refuse(source, "adapter", f"the adapter {adapter}")
        elif draft.keys["dtype"] != "float32" and draft.keys.get("attn_implementation", "sdpa") != "flash_attention_2":
            key = "bf16" if source.has("bf16") else "base_model"
            draft.refuse(source, key, "embeddings, head and norms that axolotl keeps in float32 in a full fine-tune")
        for key in ("load_in_4bit", "load_in_8bit"):
            if source.flag(key):
                draft.refuse(source, key, "a quantized base without an adapter")
        return
    config: dict[str, Any] = {"peft_type": "LORA"}
    draft.note(source, "adapter", "peft")
    if source.has("lora_r"):
        config["r"] = source.integer("lora_r")
        draft.note(source, "lora_r", "peft.r")
    if source.has("lora_dropout"):
        config["lora_dropout"] = source.number("lora_dropout")
        draft.note(source, "lora_dropout", "peft.lora_dropout")
    if source.flag("lora_target_linear"):
        config["target_modules"] = "all-linear"
        draft.note(source, "lora_target_linear", "peft.target_modules")
        beyond = {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"} & set(
            source.names("lora_target_modules") or ()
        )
        if beyond:
            draft.refuse(source, "lora_target_modules", f"{', '.join(sorted(beyond))} beside every linear layer")
    elif source.has("lora_target_modules"):
        config["target_modules"] = source.names("lora_target_modules")
        draft.note(source, "lora_target_modules", "peft.target_modules")
    for key, name in _LORA.items():
        if source.get(key) not in (None, [], {}, False):
            config[name] = source.get(key)
            draft.note(source, key, f"peft.{name}")
    draft.use(source, "adapter", "peft", config)
    if source.has("peft_autocast_adapter_dtype"):
        draft.use(
            source, "peft_autocast_adapter_dtype", "autocast_adapter_dtype", source.flag("peft_autocast_adapter_dtype")
        )
    _read_quantization(source, draft, adapter)


def _read_quantization(source: Source, draft: Draft, adapter: str) -> None:
    keys = draft.keys
    if adapter == "qlora" and source.flag("load_in_4bit"):
        draft.use(source, "load_in_4bit", "load_in_4bit")
        keys["bnb_4bit_compute_dtype"] = keys["dtype"]
        keys["bnb_4bit_use_double_quant"] = draft.default(
            "axolotl", "bnb_4bit_use_double_quant", "bnb_4bit_use_double_quant"
        )
        keys["bnb_4bit_quant_type"] = draft.default("axolotl", "bnb_4bit_quant_type", "bnb_4bit_quant_type")
        keys["bnb_4bit_quant_storage"] = draft.default("axolotl", "bnb_4bit_quant_storage", "bnb_4bit_quant_storage")
    elif adapter == "lora" and source.flag("load_in_8bit"):
        draft.use(source, "load_in_8bit", "load_in_8bit")
    else:
        for key in ("load_in_4bit", "load_in_8bit"):
            if source.flag(key):
                draft.refuse(source, key, f"{key} with adapter {adapter}")
        return
    # loaders/model.py:435: what prepare_model_for_kbit_training casts up is cast back to the load dtype.
    keys["prepare_model_for_kbit_training"] = draft.default(
        "axolotl", "prepare_model_for_kbit_training", "prepare_model_for_kbit_training"
    )


def _read_loss(source: Source, draft: Draft) -> None:
    """Liger and cut cross entropy come as plugins with flags of their own."""
    plugins = source.get("plugins") or []
    if not isinstance(plugins, list):
        raise source.wrong("plugins", "a list")
    names = [str(name) for name in plugins]
    liger = [key for key in source.data if str(key).startswith("liger_")]
    source.take(*liger)
    on = [key for key in liger if source.get(key)]
    if on and any("liger" in name.lower() for name in names):
        draft.use(source, on[0], "stack", "liger")
        for key in on:
            draft.note(source, key, "stack")
        if source.flag("liger_fused_linear_cross_entropy"):
            draft.use(source, "liger_fused_linear_cross_entropy", "loss", "fused_linear")
    cut = any("cut_cross_entropy" in name.lower() for name in names)
    if cut and source.flag("cut_cross_entropy") is not False:
        draft.refuse(source, "cut_cross_entropy" if source.has("cut_cross_entropy") else "plugins", "cut cross entropy")
    source.take("cut_cross_entropy")
    for name in names:
        if "liger" not in name.lower() and "cut_cross_entropy" not in name.lower():
            draft.refuse(source, "plugins", f"the plugin {name[:80]}")
