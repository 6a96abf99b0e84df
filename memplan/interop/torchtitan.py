"""torchtitan's TOML, and the JSON that newer versions dump.

Sources: torchtitan/config/configs.py (0.3.0); train_configs/llama3_8b.toml of older versions. Weights are float32; with one
GPU `mixed_precision_param` means autocast, with several it is FSDP's. Its models are its own, so no answer is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.interop.draft import Draft, Source

HARMLESS = frozenset({"global_batch_size", "gc_freq", "steps", "dataset", "data_parallel_replicate_degree"})
_MARKS = ("training", "parallelism", "activation_checkpoint", "job", "experimental", "optimizer")
_TRAINING = ("local_batch_size", "batch_size", "seq_len", "max_context_length", "mixed_precision_param", "dataset")
# By model name and flavor; llama3 in torchtitan has the sizes of Llama 3.1.
MODELS = {
    ("llama3", "8B"): "meta-llama/Llama-3.1-8B",
    ("llama3", "70B"): "meta-llama/Llama-3.1-70B",
    ("llama3", "405B"): "meta-llama/Llama-3.1-405B",
    ("llama2", "7B"): "meta-llama/Llama-2-7b-hf",
    ("llama2", "13B"): "meta-llama/Llama-2-13b-hf",
    ("llama2", "70B"): "meta-llama/Llama-2-70b-hf",
}
_DEGREES = {
    "data_parallel_replicate_degree": "replicated data parallelism",
    "data_parallel_shard_degree": "FSDP",
    "tensor_parallel_degree": "tensor parallelism",
    "pipeline_parallel_degree": "pipeline parallelism",
    "context_parallel_degree": "context parallelism",
    "expert_parallel_degree": "expert parallelism",
}
_IMPLEMENTATIONS = {"fused": "adamw_torch_fused", "foreach": "adamw_torch", "for-loop": "adamw_torch"}


def is_torchtitan(data: Mapping[str, Any]) -> bool:
    """Whether the mapping has torchtitan's sections."""
    training = data.get("training")
    sections = sum(isinstance(data.get(mark), Mapping) for mark in _MARKS)
    return isinstance(training, Mapping) and sections >= 2 and any(key in training for key in _TRAINING)


def read(source: Source, draft: Draft) -> None:
    """A JobConfig."""
    _read_model(source.sub("model"), draft)
    draft.keys["method"] = "full"
    training = source.sub("training")
    for names, recipe_key in (
        (("local_batch_size", "batch_size"), "micro_batch_size"),
        (("seq_len", "max_context_length"), "sequence_length"),
    ):
        found = next((key for key in names if training.integer(key) is not None), None)
        if found:
            draft.use(training, found, recipe_key, training.integer(found))
        elif "num_tokens_per_microbatch_per_dp_rank" not in training.data or recipe_key == "sequence_length":
            draft.keys[recipe_key] = draft.default("torchtitan", names[0], recipe_key)
    if training.has("num_tokens_per_microbatch_per_dp_rank"):
        _read_tokens(training, draft)
    if training.number("max_norm") is not None:
        draft.use(training, "max_norm", "max_grad_norm", training.number("max_norm"))
    else:
        draft.keys["max_grad_norm"] = draft.default("torchtitan", "max_norm", "max_grad_norm")
    _read_precision(training, draft)
    for key, text in (("enable_cpu_offload", "parameters offloaded to the CPU"), ("compile", "torch.compile")):
        if training.flag(key):
            draft.refuse(training, key, text)
    if source.sub("compile").flag("enable"):
        draft.refuse(source.sub("compile"), "enable", "torch.compile")
    _read_parallelism(source, draft)
    _read_optimizer(source.sub("optimizer"), draft)
    _read_checkpointing(source.sub("activation_checkpoint"), draft)
    old = source.sub("float8")
    if old.flag("enable_float8_linear"):
        draft.refuse(old, "enable_float8_linear", "training in fp8")
    for key in ("float8", "mx", "quantize"):  # options of converters, which model.converters switches on
        source.sub(key).take_all()
    for key in (
        "job",
        "profiling",
        "metrics",
        "checkpoint",
        "comm",
        "lr_scheduler",
        "debug",
        "validation",
        "memory_estimation",
        "fault_tolerance",
    ):
        if isinstance(source.data.get(key), Mapping):
            section = source.sub(key)
            section.take_all()


def _read_model(model: Source, draft: Draft) -> None:
    name, flavor = str(model.get("name") or ""), str(model.get("flavor") or "")
    known = MODELS.get((name.lower(), flavor))
    key = "flavor" if model.has("flavor") else "name"
    if known:
        draft.use(model, key, "model", known)
    draft.refuse(
        model,
        key,
        f"torchtitan's own {name or 'model'} {flavor}: the step is walked as transformers runs it".replace(" :", ":"),
    )
    converters = model.get("converters")
    if converters:
        draft.refuse(model, "converters", f"converters {converters}")
    model.take_all()


def _read_tokens(training: Source, draft: Draft) -> None:
    tokens = training.integer("num_tokens_per_microbatch_per_dp_rank") or 0
    length = draft.keys.get("sequence_length")
    if length and tokens % length == 0 and tokens >= length:
        draft.use(training, "num_tokens_per_microbatch_per_dp_rank", "micro_batch_size", tokens // length)
    else:
        draft.refuse(
            training, "num_tokens_per_microbatch_per_dp_rank", "a batch that is no multiple of the sequence length"
        )


def _read_precision(training: Source, draft: Draft) -> None:
    dtype = training.text("dtype")
    dtype = dtype or draft.default("torchtitan", "dtype", "dtype")
    if training.has("dtype"):
        draft.use(training, "dtype", "dtype", dtype)
    else:
        draft.keys["dtype"] = dtype
    param = training.text("mixed_precision_param")
    if param is None:
        param = draft.default("torchtitan", "mixed_precision_param", "precision")
    else:
        draft.note(training, "mixed_precision_param", "precision")
    training.take("mixed_precision_reduce")
    draft.facts["loop"] = "torchtitan"
    draft.facts["amp"] = param if param in ("bfloat16", "float16") and dtype == "float32" else None


def _read_parallelism(source: Source, draft: Draft) -> None:
    section = source.sub("parallelism")
    shard = section.integer("data_parallel_shard_degree")
    if shard in (None, -1):
        key = "data_parallel_shard_degree"
        draft.refuse(
            section if section.data else source,
            key if section.data else "parallelism",
            "FSDP over as many GPUs as there are",
        )
    product = 1
    for key, text in _DEGREES.items():
        degree = section.integer(key) or 1
        if degree > 1:
            product *= degree
            draft.refuse(section, key, f"{text} over {degree} GPUs")
    if product > 1:
        draft.keys["gpus"] = product
    section.take_all()
    experimental = source.sub("experimental")
    for key in ("context_parallel_degree", "pipeline_parallel_degree"):
        if (experimental.integer(key) or 1) > 1:
            draft.refuse(experimental, key, _DEGREES[key])
    old = source.sub("training")
    for key in ("data_parallel_replicate_degree", "data_parallel_shard_degree", "tensor_parallel_degree"):
        if (old.integer(key) or 1) > 1:
            draft.refuse(old, key, f"{_DEGREES[key]} over {old.get(key)} GPUs")


def _read_optimizer(optimizer: Source, draft: Draft) -> None:
    name = optimizer.text("name")
    if name not in (None, "AdamW", "Adam"):
        draft.refuse(optimizer, "name", f"the optimizer {name}")
        return
    implementation = optimizer.text("implementation")
    if implementation is None and optimizer.flag("fused") is not None:
        implementation = "fused" if optimizer.flag("fused") else "foreach"
    if implementation is None:
        implementation = draft.default("torchtitan", "implementation", "optim")
    if implementation in _IMPLEMENTATIONS:
        key = next((key for key in ("implementation", "fused", "name") if optimizer.has(key)), "name")
        optim = _IMPLEMENTATIONS[implementation]
        if optimizer.has(key):
            draft.use(optimizer, key, "optim", optim)
        else:
            draft.keys["optim"] = optim
    else:
        draft.refuse(optimizer, "implementation", f"an optimizer that is {implementation}")
    if optimizer.flag("early_step_in_backward"):
        draft.refuse(optimizer, "early_step_in_backward", "an optimizer that steps during backward")
    optimizer.take("eps", "beta1", "beta2")


def _read_checkpointing(section: Source, draft: Draft) -> None:
    mode = section.text("mode")
    option = section.get("selective_ac_option")
    if mode is None:
        mode = draft.default("torchtitan", "mode", "activation_checkpointing")
        draft.keys["activation_checkpointing"] = False
    if mode == "full":
        draft.use(section, "mode", "activation_checkpointing", "non-reentrant")
    elif mode == "none":
        draft.use(section, "mode", "activation_checkpointing", False)
    else:
        draft.refuse(section, "mode", f"{mode} checkpointing ({option or 'its default option'})")
    section.take_all()
