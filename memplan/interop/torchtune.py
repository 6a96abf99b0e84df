"""torchtune's YAML.

Sources: recipes/configs/**/*.yaml and torchtune/models/*/_model_builders.py (0.6.1). `${...}` is filled in here, for plain
paths only; `_component_` is compared with known names and never imported. `dtype: bf16` is pure bfloat16, adapters included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memplan.errors import FileFormatError
from memplan.interop.defaults import reference_version
from memplan.interop.draft import Draft, Source

HARMLESS = frozenset(
    {
        "batch_size_val",
        "log_peak_memory_stats",
        "num_warmup_steps",
        "log_every_n_steps",
        "save_adapter_weights_only",
        "seed",
        "enable_async_checkpointing",
        "max_steps_per_epoch",
        "epochs",
        "keep_last_n_checkpoints",
        "low_cpu_ram",
    }
)

# By builder in torchtune.models, without lora_ and qlora_.
MODELS = {
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-hf",
    "code_llama2_7b": "codellama/CodeLlama-7b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B",
    "llama3_1_70b": "meta-llama/Llama-3.1-70B",
    "llama3_1_405b": "meta-llama/Llama-3.1-405B",
    "llama3_2_1b": "meta-llama/Llama-3.2-1B",
    "llama3_2_3b": "meta-llama/Llama-3.2-3B",
    "llama3_3_70b": "meta-llama/Llama-3.3-70B-Instruct",
    "mistral_7b": "mistralai/Mistral-7B-v0.1",
    "gemma_2b": "google/gemma-2b",
    "gemma_7b": "google/gemma-7b",
    "gemma2_2b": "google/gemma-2-2b",
    "gemma2_9b": "google/gemma-2-9b",
    "gemma2_27b": "google/gemma-2-27b",
    "phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4_14b": "microsoft/phi-4",
    "qwen2_0_5b": "Qwen/Qwen2-0.5B",
    "qwen2_1_5b": "Qwen/Qwen2-1.5B",
    "qwen2_7b": "Qwen/Qwen2-7B",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B",
    "qwen2_5_1_5b_instruct": "Qwen/Qwen2.5-1.5B",
    "qwen2_5_3b": "Qwen/Qwen2.5-3B",
    "qwen2_5_7b": "Qwen/Qwen2.5-7B",
    "qwen2_5_7b_instruct": "Qwen/Qwen2.5-7B",
    "qwen2_5_14b_instruct": "Qwen/Qwen2.5-14B",
    "qwen2_5_32b_instruct": "Qwen/Qwen2.5-32B",
    "qwen2_5_72b_instruct": "Qwen/Qwen2.5-72B",
}
OPTIMIZERS = {
    "torch.optim.AdamW": "adamw_torch",
    "torch.optim.Adam": "adamw_torch",
    "torch.optim.SGD": "sgd",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit",
    "bitsandbytes.optim.AdamW": "adamw_torch",
}
LOSSES = {
    "torchtune.modules.loss.CEWithChunkedOutputLoss": "chunked",
    "torchtune.modules.loss.LinearCrossEntropyLoss": "chunked",
    "torch.nn.CrossEntropyLoss": "default",
}
_REFUSED = {
    "enable_activation_offloading": "activations offloaded to the CPU",
    "fsdp_cpu_offload": "FSDP with offloading",
    "custom_sharded_layers": "FSDP",
    "fsdp_reshard_after_forward": "FSDP",
    "ac_mode": "selective checkpointing",
    "teacher_model": "a teacher model",
    "quantizer": "training for quantization",
    "tensor_parallel_plan": "tensor parallelism",
    "enable_fp8_training": "training in fp8",
    "reward_and_value_model": "PPO",
    "compile": "torch.compile, which fuses kernels and keeps other tensors",
    "use_qat": "training for quantization",
}
_DEGREES = ("tensor_parallel_dim", "data_parallel_shard_dim", "data_parallel_replicate_dim", "context_parallel_dim")
_PROJECTIONS = {"output_proj": "o_proj"}


def is_torchtune(data: Mapping[str, Any]) -> bool:
    """Whether a section of the mapping names a `_component_`."""
    return any(isinstance(value, Mapping) and "_component_" in value for value in data.values())


def read(source: Source, draft: Draft) -> None:
    """A fine-tuning recipe's config."""
    source.data = interpolated(source.data, source.name)
    keys = draft.keys
    keys["stack"], keys["stack_version"] = (
        "torchtune",
        draft.versions.setdefault("torchtune", reference_version("torchtune")),
    )
    _read_dtype(source, draft)
    _read_model(source.sub("model"), draft)
    for key, recipe_key in (("batch_size", "micro_batch_size"), ("gradient_accumulation_steps",) * 2):
        if source.integer(key) is not None:
            draft.use(source, key, recipe_key, source.integer(key))
    if not source.has("batch_size"):
        raise source.wrong("batch_size", "a whole number; torchtune has no default")
    _read_data(source, draft)
    _read_optimizer(source, draft)
    loss = source.sub("loss")
    name = loss.text("_component_")
    if name in LOSSES:
        draft.use(loss, "_component_", "loss", LOSSES[name])
    elif name is not None:
        draft.refuse(loss, "_component_", f"the loss {name}")
    loss.take("num_output_chunks", "ignore_index")
    on = source.flag("enable_activation_checkpointing")
    if on is not None:
        draft.use(
            source, "enable_activation_checkpointing", "activation_checkpointing", "non-reentrant" if on else False
        )
    draft.refuse_all(source, _REFUSED)
    for key in _DEGREES:
        if (source.integer(key) or 1) not in (1, -1):
            draft.refuse(source, key, f"{key} = {source.get(key)}")
    if str(source.get("device") or "cuda") != "cuda":
        draft.refuse(source, "device", f"training on {source.get('device')}")
    for key in ("checkpointer", "metric_logger", "profiler", "lr_scheduler", "tokenizer", "dataset", "dataset_val"):
        section = source.sub(key) if isinstance(source.data.get(key), Mapping) else None
        if section is not None:
            section.take_all()


def _read_dtype(source: Source, draft: Draft) -> None:
    name = source.text("dtype")
    if name in ("bf16", "fp16"):
        draft.use(source, "dtype", "dtype", "bfloat16" if name == "bf16" else "float16")
        draft.keys["precision"] = "pure"
    elif name == "fp32":
        draft.use(source, "dtype", "dtype", "float32")
        draft.keys["precision"] = "fp32"
    else:
        raise source.wrong("dtype", "bf16, fp16 or fp32")
    draft.note(source, "dtype", "precision")


def _read_model(model: Source, draft: Draft) -> None:
    name = model.text("_component_") or ""
    match = re.fullmatch(r"torchtune\.models\.\w+\.(?P<adapter>q?lora_)?(?P<builder>\w+)", name)
    builder = match["builder"] if match else ""
    if builder in MODELS:
        draft.use(model, "_component_", "model", MODELS[builder])
    else:
        draft.refuse(model, "_component_", f"the model {name or 'that is not named'}")
    model.take(
        "lora_alpha", "lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output", "lora_rank", "lora_dropout"
    )
    if match is None or not match["adapter"]:
        draft.keys["method"] = "full"
        return
    targets = [_PROJECTIONS.get(entry, entry) for entry in model.names("lora_attn_modules") or ()]
    if model.flag("apply_lora_to_mlp"):
        targets += ["gate_proj", "up_proj", "down_proj"]
    if model.flag("apply_lora_to_output"):
        targets.append("lm_head")
    config: dict[str, Any] = {"peft_type": "LORA", "target_modules": targets}
    for key, entry, value in (
        ("lora_rank", "r", model.integer("lora_rank")),
        ("lora_dropout", "lora_dropout", model.number("lora_dropout")),
        ("use_dora", "use_dora", model.flag("use_dora") or None),
    ):
        if value is not None:
            config[entry] = value
            draft.note(model, key, f"peft.{entry}")
    for key in ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output"):
        if model.has(key):
            draft.note(model, key, "peft.target_modules")
    draft.keys["peft"] = config
    draft.keys["autocast_adapter_dtype"] = False
    quantized = match["adapter"] == "qlora_" or bool(model.flag("quantize_base"))
    if quantized:
        draft.keys.update(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_quant_storage="uint8",
            bnb_4bit_compute_dtype=draft.keys["dtype"], prepare_model_for_kbit_training=False,
        )  # fmt: skip
        draft.note(model, "_component_", "load_in_4bit")
        draft.refuse(model, "_component_", "torchao's NF4 layers; their storage is taken as that of bitsandbytes")


def _read_data(source: Source, draft: Draft) -> None:
    tokenizer = source.sub("tokenizer")
    length = tokenizer.integer("max_seq_len")
    if length is not None:
        draft.use(tokenizer, "max_seq_len", "sequence_length", length)
    else:
        draft.facts["open_length"] = f"{tokenizer.place('max_seq_len')}: max_seq_len = null cuts no sequence"
    dataset = source.data.get("dataset")
    if isinstance(dataset, Mapping):
        section = source.sub("dataset")
        if section.flag("packed") is not None:
            draft.use(section, "packed", "packing", section.flag("packed"))
    else:
        source.take("dataset")


def _read_optimizer(source: Source, draft: Draft) -> None:
    section = source.sub("optimizer")
    name = section.text("_component_") or ""
    optim = OPTIMIZERS.get(name)
    if optim is None:
        draft.refuse(section, "_component_", f"the optimizer {name or 'that is not named'}")
    else:
        if optim == "adamw_torch" and section.flag("fused"):
            optim = "adamw_torch_fused"
            draft.note(section, "fused", "optim")
        draft.use(section, "_component_", "optim", optim)
    section.take("fused", "foreach", "momentum", "betas", "eps")
    in_backward = source.flag("optimizer_in_bwd")
    if in_backward is not None and draft.keys.get("method") == "full":  # the recipes of adapters do not read it
        draft.use(source, "optimizer_in_bwd", "optimizer_in_backward", in_backward)
    elif in_backward:
        draft.refuse(source, "optimizer_in_bwd", "an optimizer that steps during backward beside an adapter")
    draft.keys["max_grad_norm"] = 0.0
    if source.number("clip_grad_norm") is not None:
        draft.use(source, "clip_grad_norm", "max_grad_norm", source.number("clip_grad_norm"))


_REFERENCE = re.compile(r"\$\{([\w.]{1,200})\}")
_MOST_STEPS = 16


def interpolated(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`data` with every `${a.b}` replaced by the value at that path.

    Raises:
        FileFormatError: a reference to nothing, or to itself. References of other kinds stay as they are.
    """

    def lookup(path: str) -> Any:
        value: Any = data
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise FileFormatError(f"{name}: ${{{path}}} refers to nothing in this file")
            value = value[part]
        return value

    def fill(value: Any, steps: int) -> Any:
        if steps > _MOST_STEPS:
            raise FileFormatError(f"{name}: a ${{...}} that refers to itself")
        if isinstance(value, Mapping):
            return {key: fill(entry, steps) for key, entry in value.items()}
        if isinstance(value, list):
            return [fill(entry, steps) for entry in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            found = lookup(whole[1])
            if isinstance(found, Mapping | list):
                raise FileFormatError(f"{name}: ${{{whole[1]}}} refers to a whole section, which is not read")
            return fill(found, steps + 1)
        text = _REFERENCE.sub(lambda match: str(lookup(match[1]))[:500], value)
        return text if text == value else fill(text[:4096], steps + 1)

    return {key: fill(value, 0) for key, value in data.items()}
