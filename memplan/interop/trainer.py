"""transformers' TrainingArguments, as JSON or as the upper part of another framework's config.

Source: transformers/training_args.py (5.23.0). What it does not hold: the model, its load dtype (a default of
`from_pretrained`) and the sequence length.
"""

from __future__ import annotations

from typing import Any

from memplan.errors import FileFormatError
from memplan.interop.draft import Draft, Source
from memplan.interop.evaluating import read_evaluation, read_saving
from memplan.recipe import Offloading

# Known, and without any bearing on the memory of a training step.
HARMLESS = frozenset({
    "accelerator_config", "adam_beta1", "adam_beta2", "adam_epsilon", "average_tokens_across_devices",
    "bf16_full_eval", "data_seed", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout",
    "local_rank", "eval_use_gather_object", "fp16_full_eval", "fp16_opt_level", "group_by_length",
    "include_num_input_tokens_seen", "include_tokens_per_second", "length_column_name", "save_on_each_node",
    "skip_memory_metrics", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "tp_size",
    "log_on_each_node", "past_index", "tf32", "train_sampling_strategy", "hub_token", "push_to_hub_token",
})  # fmt: skip


def read(source: Source, draft: Draft) -> None:
    """TrainingArguments by themselves."""
    draft.facts.setdefault("loop", "transformers")
    read_precision(source, draft, framework="transformers")
    read_training(source, draft, script_evaluates=True)
    read_checkpointing(source, draft, framework="transformers")
    read_liger(source, draft)
    read_padding(draft, "transformers")


def read_training(source: Source, draft: Draft, *, script_evaluates: bool) -> None:
    """Batch, optimizer, evaluation, parallelism: what every framework on top of Trainer takes over as it is.

    Args:
        source: holds them.
        draft: takes them.
        script_evaluates: `do_eval` and `do_predict` are obeyed after training.
    """
    draft.use_or_default(source, "per_device_train_batch_size", "micro_batch_size", "transformers")
    draft.use_or_default(source, "gradient_accumulation_steps", "gradient_accumulation_steps", "transformers")
    if source.flag("adafactor"):
        draft.use(source, "adafactor", "optim", "adafactor")
    else:
        draft.use_or_default(source, "optim", "optim", "transformers")
    draft.use_or_default(source, "max_grad_norm", "max_grad_norm", "transformers")
    if source.has("optim_args"):
        draft.use(source, "optim_args", "optim_args", optim_args(source))
    if source.has("optim_target_modules"):
        draft.use(source, "optim_target_modules", "optim_target_modules", source.names("optim_target_modules"))
    if source.flag("use_cache"):
        draft.use(source, "use_cache", "use_cache")
    read_evaluation(source, draft, script_evaluates=script_evaluates)
    read_saving(source, draft)
    for key, text in (
        ("torch_compile", "torch.compile, which fuses kernels and keeps other tensors"),
        ("use_cpu", "training on the CPU"),
        ("no_cuda", "training on the CPU"),
        ("auto_find_batch_size", "batches that become smaller whenever memory runs out"),
    ):
        if source.flag(key):
            draft.refuse(source, key, text)
    if source.number("neftune_noise_alpha"):
        draft.refuse(source, "neftune_noise_alpha", "NEFTune's noise on the embeddings")
    if source.number("label_smoothing_factor"):
        draft.refuse(source, "label_smoothing_factor", "label smoothing, which computes a second loss from the logits")
    if source.get("half_precision_backend") == "apex":
        draft.refuse(source, "half_precision_backend", "mixed precision by Apex")
    read_parallelism(source, draft)


def read_precision(source: Source, draft: Draft, *, framework: str) -> None:
    """`bf16` and `fp16`, which mean autocast; the framework says what holds without them."""
    fp16, bf16 = source.flag("fp16"), source.flag("bf16")
    if fp16 and bf16:
        raise FileFormatError(f"{source.place('bf16')}: bf16 and fp16 exclude each other", hint="keep one of them")
    if fp16:
        draft.use(source, "fp16", "autocast_dtype", "float16")
    elif bf16:
        draft.use(source, "bf16", "autocast_dtype", "bfloat16")
    elif bf16 is None and not fp16 and draft.default(framework, "bf16", "precision"):
        draft.keys.setdefault("autocast_dtype", "bfloat16")
    draft.facts["amp"] = draft.keys.pop("autocast_dtype", None)


def read_checkpointing(source: Source, draft: Draft, *, framework: str) -> None:
    """`activation_checkpointing` or its old name, with its kwargs."""
    key = "activation_checkpointing" if source.has("activation_checkpointing") else "gradient_checkpointing"
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        source.take(f"{name}_kwargs", name)
    kwargs = source.sub(f"{key}_kwargs")
    on = source.flag(key)
    if on is None:
        name = "gradient_checkpointing" if framework == "trl" else "activation_checkpointing"
        on = bool(draft.default(framework, name, "activation_checkpointing"))
    mode: bool | str = on
    if on:
        reentrant = kwargs.flag("use_reentrant")
        if reentrant is not None:
            draft.note(kwargs, "use_reentrant", "activation_checkpointing")
        else:
            reentrant = bool(draft.default(framework, "use_reentrant", "activation_checkpointing"))
        mode = "reentrant" if reentrant else "non-reentrant"
        if (kwargs.integer("every_n_layers") or 1) > 1:
            draft.refuse(kwargs, "every_n_layers", "checkpointing of some layers only; all are taken as checkpointed")
        if kwargs.flag("offload"):
            draft.use(kwargs, "offload", "activation_offloading", str(Offloading.CHECKPOINTS))
        if kwargs.flag("selective"):
            draft.refuse(kwargs, "selective", "selective checkpointing, which keeps the results of matrix products")
        kwargs.take("preserve_rng_state", "determinism_check", "debug", "early_stop")
    if source.has(key):
        draft.use(source, key, "activation_checkpointing", mode)
    else:
        draft.keys.setdefault("activation_checkpointing", mode)


def read_padding(draft: Draft, framework: str) -> None:
    """Batches of several sequences are padded to their longest, and a mask changes what attention keeps."""
    if draft.keys.get("micro_batch_size", 1) > 1 and not draft.keys.get("packing"):
        draft.keys["padding"] = draft.default(framework, "padding", "padding")


def read_liger(source: Source, draft: Draft) -> None:
    """Liger's kernels, with their fused loss unless it is switched off."""
    if not source.flag("use_liger_kernel"):
        source.take("liger_kernel_config")
        return
    draft.use(source, "use_liger_kernel", "stack", "liger")
    config = source.sub("liger_kernel_config")
    fused = config.flag("fused_linear_cross_entropy")
    draft.keys["loss"] = "default" if fused is False else "fused_linear"
    draft.note(source, "use_liger_kernel", "loss")
    config.take("rope", "swiglu", "geglu", "rms_norm", "layer_norm", "cross_entropy")


def read_parallelism(source: Source, draft: Draft) -> None:
    """Everything that spreads the run over GPUs or moves parts of it off them."""
    fsdp = source.get("fsdp")
    config = source.get("fsdp_config")
    if fsdp not in (None, "", False, [], ()):
        draft.refuse(source, "fsdp", f"FSDP (fsdp = {_plain(fsdp)})")
    elif isinstance(config, dict) and config.get("fsdp_version"):
        draft.refuse(source, "fsdp_config", "FSDP")
    if source.get("deepspeed"):
        shown = source.get("deepspeed")
        draft.refuse(source, "deepspeed", f"DeepSpeed ({shown if isinstance(shown, str) else 'inline config'})")
    parallelism = source.get("parallelism_config")
    if parallelism:
        draft.refuse(source, "parallelism_config", "parallelism over several GPUs")
    if source.get("sharded_ddp"):
        draft.refuse(source, "sharded_ddp", "sharded data parallelism")


def optim_args(source: Source) -> dict[str, Any]:
    """`optim_args` as an object: `rank=64, update_proj_gap=100` is {"rank": 64, "update_proj_gap": 100}."""
    value = source.get("optim_args")
    if isinstance(value, dict):
        return dict(value)
    if not isinstance(value, str):
        raise source.wrong("optim_args", "text such as rank=64,scale=0.25, or a mapping")
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, equals, text = part.partition("=")
        if not equals:
            raise source.wrong("optim_args", "pairs such as rank=64, with commas between them")
        found[name.strip()] = _number(text.strip())
    return found


def _number(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
