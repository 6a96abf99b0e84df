"""The YAML that TRL's command line takes (`trl sft --config sft.yaml`), and an SFTConfig as JSON.

Sources: trl/trainer/{base_config,sft_config,model_config,sft_trainer}.py (1.16.0). It differs from TrainingArguments in its
defaults: checkpointing and bf16 are on, the model is loaded in float32, and from 1.15 on full logits never exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.interop.defaults import reference_version
from memplan.interop.draft import Draft, Source
from memplan.interop.trainer import HARMLESS as _TRAINER_HARMLESS
from memplan.interop.trainer import read_checkpointing, read_liger, read_padding, read_precision, read_training
from memplan.recipe import Offloading

HARMLESS = _TRAINER_HARMLESS | {
    "dataset_num_proc", "eval_packing", "lora_alpha", "truncation_mode", "use_rslora", "lora_task_type",
    "dataset_batch_size", "pad_token", "shuffle_dataset",
}  # fmt: skip
_MARKS = (
    "dataset_text_field", "use_peft", "use_bnb_nested_quant", "completion_only_loss", "assistant_only_loss",
    "packing_strategy", "padding_free", "lora_task_type", "dataset_train_split", "lora_target_modules",
)  # fmt: skip
_WITH_MODEL = ("dataset_name", "max_length", "max_seq_length", "dtype", "torch_dtype", "attn_implementation")
_FOREIGN = ("finetuning_type", "cutoff_len", "stage", "base_model", "template")


# Keys of TRL's other trainers: a reference or reward model, generation, several losses.
_OTHER_TRAINERS = (
    "beta", "max_prompt_length", "max_completion_length", "num_generations", "reference_free", "ref_model_init_kwargs",
    "precompute_ref_log_probs", "reward_model_path", "reward_model_name_or_path", "reward_funcs", "use_vllm", "rpo_alpha",
    "desirable_weight", "undesirable_weight", "sync_ref_model", "teacher_model_name_or_path", "cpo_alpha", "num_ppo_epochs",
    "judge", "ld_alpha", "disable_dropout", "center_rewards_coefficient", "num_iterations",
)  # fmt: skip


def is_trl(data: Mapping[str, Any]) -> bool:
    """Whether a mapping has keys of SFTConfig, or TRL's model keys beside its own data keys."""
    if any(key in data for key in _FOREIGN):
        return False
    named = "model_name_or_path" in data and any(key in data for key in _WITH_MODEL)
    return named or any(key in data for key in _MARKS)


def read(source: Source, draft: Draft) -> None:
    """An SFT run of TRL."""
    draft.facts["loop"] = "trl"
    draft.versions.setdefault("trl", reference_version("trl"))
    draft.use(source, "model_name_or_path", "model")
    draft.keys["stack"], draft.keys["stack_version"] = "trl", draft.versions["trl"]
    for key in ("dtype", "torch_dtype"):
        if source.has(key):
            draft.use(source, key, "dtype", str(source.get(key)).removeprefix("torch."))
    read_precision(source, draft, framework="trl")
    read_training(source, draft, script_evaluates=False)  # trl/scripts/sft.py asks for eval_strategy alone
    read_checkpointing(source, draft, framework="trl")
    _read_lengths(source, draft)
    _read_loss(source, draft)
    _read_quantization(source, draft)
    _read_adapter(source, draft)
    if source.has("attn_implementation"):
        draft.use(source, "attn_implementation", "attn_implementation")
    if source.flag("activation_offloading"):
        if "activation_offloading" in draft.keys:
            draft.refuse(source, "activation_offloading", "activations offloaded beside offloaded checkpoints")
        else:
            draft.use(source, "activation_offloading", "activation_offloading", str(Offloading.SAVED_TENSORS))
    other = [key for key in _OTHER_TRAINERS if source.get(key) is not None]
    if other:
        draft.refuse(source, other[0], f"another trainer than SFT ({', '.join(other)})")
    if source.get("model_init_kwargs"):
        draft.refuse(source, "model_init_kwargs", "model_init_kwargs, which may change how the model is loaded")


def _read_lengths(source: Source, draft: Draft) -> None:
    key = "max_seq_length" if source.has("max_seq_length") else "max_length"
    if source.has(key):
        draft.use(source, key, "sequence_length", source.integer(key))
    elif key in source.data:
        draft.facts["open_length"] = f"{source.place(key)}: {key} = null cuts no sequence"
    else:
        draft.keys["sequence_length"] = draft.default("trl", "max_length", "sequence_length")
    source.take("max_length", "pad_to_multiple_of", "padding_free")
    packs, is_free = source.flag("packing"), bool(source.flag("padding_free"))
    # sft_trainer.py: only packing best-fit decreasing makes the batch one row; wrapped texts fill rows of their own.
    wraps = packs is True and not is_free and source.text("packing_strategy") == "wrapped"
    if source.has("packing"):
        draft.use(source, "packing", "packing", packs and not wraps)
    else:
        draft.keys["packing"] = draft.default("trl", "packing", "packing")
    source.take("packing_strategy")
    if is_free and not packs:
        draft.refuse(source, "padding_free", "padding-free batches")
    if wraps:
        draft.keys["padding"] = False
    elif not is_free:
        read_padding(draft, "trl")


def _read_loss(source: Source, draft: Draft) -> None:
    liger = bool(source.flag("use_liger_kernel"))
    loss = source.text("loss_type")
    if loss is None:
        loss = "nll" if liger else draft.default("trl", "loss_type", "loss")
    full = bool(draft.default("trl", "full_logits", "loss"))
    chunked = loss == "chunked_nll" or not full
    if source.has("loss_type"):
        draft.note(source, "loss_type", "loss")
    if loss not in ("nll", "chunked_nll"):
        draft.refuse(source, "loss_type", f"the {loss} loss")
    if not liger:
        source.take("liger_kernel_config")
        draft.keys["loss"] = "chunked" if chunked else "default"
        return
    read_liger(source, draft)
    # One of the two stacks can be said; the step of neither is taken for the other's.
    draft.refuse(source, "use_liger_kernel", "Liger's kernels under TRL")
    draft.keys["stack"] = "trl"
    if chunked:
        draft.keys["loss"] = "chunked"


def _read_quantization(source: Source, draft: Draft) -> None:
    for key in ("load_in_4bit", "load_in_8bit"):
        if source.flag(key):
            draft.use(source, key, key)
    keys = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
    source.take(*keys)
    if draft.keys.get("load_in_4bit"):
        draft.use_or_default(source, "bnb_4bit_quant_type", "bnb_4bit_quant_type", "trl")
        draft.use_or_default(source, "use_bnb_nested_quant", "bnb_4bit_use_double_quant", "trl")
        draft.use(source, "bnb_4bit_quant_storage", "bnb_4bit_quant_storage")
        dtype = draft.keys.get("dtype") or draft.default("trl", "dtype", "dtype")
        draft.keys["dtype"] = dtype
        # trl/trainer/utils.py, get_quantization_config: the compute dtype is the model's.
        draft.keys["bnb_4bit_compute_dtype"] = "float32" if dtype == "auto" else dtype
    if draft.keys.get("load_in_4bit") or draft.keys.get("load_in_8bit"):
        # sft_trainer.py:904-911: no prepare_model_for_kbit_training, adapters cast to bfloat16
        for key in ("prepare_model_for_kbit_training", "autocast_adapter_dtype"):
            draft.keys[key] = draft.default("trl", key, key)
        if draft.keys.get("bnb_4bit_compute_dtype", "float32") != "bfloat16":
            place = "load_in_4bit" if draft.keys.get("load_in_4bit") else "load_in_8bit"
            draft.refuse(source, place, "adapters that TRL casts to bfloat16 on a base of another type")


def _read_adapter(source: Source, draft: Draft) -> None:
    keys = (
        "lora_r", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_dora",
    )  # fmt: skip
    if not source.flag("use_peft"):
        source.take(*keys)
        return
    config: dict[str, Any] = {"peft_type": "LORA"}
    for key, name in (("lora_r", "r"), ("lora_dropout", "lora_dropout")):
        if source.has(key):
            config[name] = source.get(key)
            draft.note(source, key, f"peft.{name}")
        else:
            config[name] = draft.default("trl", key, f"peft.{name}")
    for key, name in (
        ("lora_target_modules", "target_modules"),
        ("lora_target_parameters", "target_parameters"),
        ("lora_modules_to_save", "modules_to_save"),
    ):
        names = source.names(key)
        if names:
            one = isinstance(names, list) and len(names) == 1 and name == "target_modules"
            config[name] = names[0] if one else names
            draft.note(source, key, f"peft.{name}")
    if source.flag("use_dora"):
        config["use_dora"] = True
        draft.note(source, "use_dora", "peft.use_dora")
    draft.use(source, "use_peft", "peft", config)
