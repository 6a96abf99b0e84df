"""accelerate's YAML and DeepSpeed's JSON: how a run is launched, rather than what it trains.

Sources: accelerate/commands/config/config_args.py, accelerate/utils/dataclasses.py (1.15), deepspeed/runtime/zero/config.py
and deepspeed/runtime/constants.py (0.19.8). One process is covered; everything that spreads or offloads is reported.
"""

from __future__ import annotations

from memplan.interop.draft import Draft, Source

HARMLESS = frozenset(
    {
        "main_process_ip",
        "main_process_port",
        "machine_rank",
        "num_cpu_threads_per_process",
        "enable_cpu_affinity",
        "downcast_bf16",
        "tpu_use_cluster",
        "mpirun_config",
        "ipex_config",
        "same_network",
        "gpu_ids",
        "main_training_function",
        "deepspeed_multinode_launcher",
        "deepspeed_hostfile",
        "fsdp_state_dict_type",
        "zero3_save_16bit_model",
    }
)
HARMLESS_DEEPSPEED = frozenset(
    {
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "flops_profiler",
        "loss_scale",
        "loss_scale_window",
        "initial_scale_power",
        "hysteresis",
        "min_loss_scale",
        "consecutive_hysteresis",
        "prescale_gradients",
        "gradient_predivide_factor",
        "sparse_gradients",
        "comms_logger",
        "autotuning",
        "elasticity",
        "communication_data_type",
        "number_checkpoints",
        "synchronize_checkpoint_boundary",
        "profile",
        "contiguous_memory_optimization",
        "checkpoint",
        "disable_allgather",
    }
)

_DEGREES = {
    "dp_replicate_size": "replicated data parallelism",
    "dp_shard_size": "sharded data parallelism",
    "tp_size": "tensor parallelism",
    "cp_size": "context parallelism",
    "sp_size": "sequence parallelism",
    "ep_size": "expert parallelism",
    "pp_size": "pipeline parallelism",
}
_OPTIMIZERS = {
    "adam": "adamw_torch_fused",
    "adamw": "adamw_torch_fused",
    "sgd": "sgd",
    "adagrad": "adagrad",
    "lion": "lion_32bit",
}


def read(source: Source, draft: Draft) -> None:
    """A ClusterConfig."""
    kind = str(source.get("distributed_type") or "NO").upper()
    _read_processes(source, draft, kind)
    precision = source.get("mixed_precision")
    precision = "no" if precision in (None, False) else str(precision).lower()
    if precision in ("bf16", "fp16"):
        draft.facts["launcher_amp"] = "bfloat16" if precision == "bf16" else "float16"
        draft.note(source, "mixed_precision", "precision")
    elif precision != "no":
        draft.refuse(source, "mixed_precision", f"mixed precision in {precision}")
    _read_fsdp(source, draft, kind)
    _read_deepspeed_plugin(source, draft, kind)
    parallelism = source.sub("parallelism_config")
    for data in (source, parallelism):
        for key in list(data.data):
            name = str(key).removeprefix("parallelism_config_")
            if name in _DEGREES and (data.integer(key) or 1) > 1:
                draft.refuse(data, key, f"{_DEGREES[name]} over {data.get(key)} GPUs")
    for key in ("megatron_lm_config", "fp8_config", "tpu_env"):
        if source.get(key):
            draft.refuse(source, key, key.removesuffix("_config"))
    dynamo = source.sub("dynamo_config")
    if str(dynamo.get("dynamo_backend") or source.get("dynamo_backend") or "NO").upper() != "NO":
        draft.refuse(dynamo if dynamo.data else source, "dynamo_backend", "torch.compile")
    dynamo.take_all()
    if source.flag("use_cpu"):
        draft.refuse(source, "use_cpu", "training on the CPU")


def _read_processes(source: Source, draft: Draft, kind: str) -> None:
    """GPUs; without a distributed type one process is started, whatever `num_processes` says."""
    processes, machines = source.integer("num_processes"), source.integer("num_machines")
    if kind in ("NO", "NONE"):
        return
    if processes is None:
        draft.refuse(source, "distributed_type", f"{kind} over as many GPUs as there are")
    elif processes > 1:
        draft.use(source, "num_processes", "gpus")
    if machines is not None and machines > 1:
        draft.refuse(source, "num_machines", f"{machines} machines")
    if kind not in ("MULTI_GPU", "FSDP", "DEEPSPEED"):
        draft.refuse(source, "distributed_type", f"distributed_type {kind}")


def _read_fsdp(source: Source, draft: Draft, kind: str) -> None:
    config = source.sub("fsdp_config")
    config.take_all()
    if kind != "FSDP":
        return
    version = config.get("fsdp_version") or 1
    draft.refuse(source, "distributed_type", f"FSDP {version}")
    for key, text in (
        ("fsdp_offload_params", "parameters offloaded to the CPU"),
        ("fsdp_activation_checkpointing", "checkpointing by FSDP"),
    ):
        if config.flag(key):
            draft.refuse(config, key, text)


def _read_deepspeed_plugin(source: Source, draft: Draft, kind: str) -> None:
    config = source.sub("deepspeed_config")
    if kind != "DEEPSPEED":
        config.take_all()
        return
    draft.facts["engine"] = "deepspeed"
    stage = config.integer("zero_stage")
    named = config.text("deepspeed_config_file")
    if named:
        draft.refuse(config, "deepspeed_config_file", f"DeepSpeed as {named} says: read that file as well")
    elif stage is None or stage > 0:
        draft.refuse(config, "zero_stage", f"ZeRO stage {2 if stage is None else stage}")
    for key in ("offload_optimizer_device", "offload_param_device"):
        if str(config.get(key) or "none").lower() != "none":
            draft.refuse(config, key, f"{key.split('_')[1]} offloaded to {config.get(key)}")
    _read_numbers(config, draft)
    config.take_all()


def read_deepspeed(source: Source, draft: Draft) -> None:
    """A DeepSpeed config; what is `auto` comes from the training arguments read beside it."""
    draft.facts["engine"] = "deepspeed"
    if source.get("train_micro_batch_size_per_gpu") != "auto":
        batch = source.integer("train_micro_batch_size_per_gpu")
        draft.use(source, "train_micro_batch_size_per_gpu", "micro_batch_size", batch)
    _read_numbers(source, draft)
    _read_world(source, draft)
    _read_deepspeed_precision(source, draft)
    optimizer = source.sub("optimizer")
    optimizer.take("params")
    name = optimizer.text("type")
    if name is not None:
        known = _OPTIMIZERS.get(name.lower())
        if known is None:
            draft.refuse(optimizer, "type", f"DeepSpeed's optimizer {name}")
        elif "optim" not in {entry.recipe_key for entry in draft.used}:
            draft.use(optimizer, "type", "optim", known)
    _read_zero(source.sub("zero_optimization"), draft)
    scheduler = source.sub("scheduler")
    scheduler.take_all()
    checkpointing = source.sub("activation_checkpointing")
    for key, text in (
        ("partition_activations", "checkpointed activations spread over GPUs"),
        ("cpu_checkpointing", "checkpointed activations in CPU memory"),
    ):
        if checkpointing.flag(key):
            draft.refuse(checkpointing, key, text)
    parallel = source.sub("tensor_parallel")
    if (parallel.integer("autotp_size") or 1) > 1:
        draft.refuse(parallel, "autotp_size", f"tensor parallelism over {parallel.get('autotp_size')} GPUs")
    if (source.integer("sequence_parallel_size") or 1) > 1:
        draft.refuse(source, "sequence_parallel_size", "sequence parallelism")


def _read_numbers(source: Source, draft: Draft) -> None:
    """What plugin and DeepSpeed's own config call the same; `auto` leaves it to the training arguments."""
    if source.get("gradient_accumulation_steps") != "auto":
        steps = source.integer("gradient_accumulation_steps")
        draft.use(source, "gradient_accumulation_steps", "gradient_accumulation_steps", steps)
    if source.get("gradient_clipping") != "auto":
        draft.use(source, "gradient_clipping", "max_grad_norm", source.number("gradient_clipping"))


def _read_world(source: Source, draft: Draft) -> None:
    """`train_batch_size` is micro batch times accumulation times GPUs."""
    total = source.get("train_batch_size")
    micro, steps = (source.get(key) for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if total in (None, "auto"):
        return
    product = micro * steps if isinstance(micro, int) and isinstance(steps, int) else 0
    batch = source.integer("train_batch_size") or 0
    if product and batch % product == 0:
        if batch > product:
            draft.use(source, "train_batch_size", "gpus", batch // product)
    else:
        draft.refuse(source, "train_batch_size", "a batch that is divided by as many GPUs as there are")


def _read_deepspeed_precision(source: Source, draft: Draft) -> None:
    """16-bit weights with an fp32 copy; gradients are accumulated in fp32 where `data_types` says so."""
    bf16, fp16, types = source.sub("bf16"), source.sub("fp16"), source.sub("data_types")
    accumulated = str(types.get("grad_accum_dtype") or "").lower() in ("fp32", "float32")
    if accumulated:
        draft.note(types, "grad_accum_dtype", "precision")
    draft.facts["engine_policy"] = "master-fp32-grads" if accumulated else "master"
    for section, dtype in ((bf16, "bfloat16"), (fp16, "float16")):
        enabled = section.get("enabled")
        if enabled == "auto":
            continue
        if section.flag("enabled"):
            draft.facts["engine_dtype"] = dtype
            draft.note(section, "enabled", "precision")
        for key in (
            "immediate_grad_update",
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "fp16_master_weights_and_grads",
        ):
            if section.flag(key):
                draft.refuse(section, key, f"DeepSpeed's {key}")
    if source.sub("torch_autocast").flag("enabled"):
        draft.refuse(source.sub("torch_autocast"), "enabled", "DeepSpeed's autocast")
    if source.sub("amp").flag("enabled"):
        draft.refuse(source.sub("amp"), "enabled", "mixed precision by Apex")


def _read_zero(zero: Source, draft: Draft) -> None:
    stage = zero.integer("stage") or 0
    if stage > 0:
        draft.refuse(zero, "stage", f"ZeRO stage {stage}")
    for key in ("offload_optimizer", "offload_param"):
        section = zero.sub(key)
        device = str(section.get("device") or "none").lower()
        if device != "none":
            draft.refuse(section, "device", f"{key.removeprefix('offload_')} offloaded to {device}")
        section.take_all()
    if zero.flag("cpu_offload"):
        draft.refuse(zero, "cpu_offload", "optimizer states offloaded to the CPU")
    zero.take_all()
