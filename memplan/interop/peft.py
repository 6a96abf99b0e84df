"""PEFT's adapter_config.json, and BitsAndBytesConfig.

Sources: peft/tuners/*/config.py (0.21.2), transformers/utils/quantization_config.py (5.23.0). Not in the file but
decisive: `get_peft_model(autocast_adapter_dtype=True)` and `prepare_model_for_kbit_training`, for which the recipe's own
defaults stand.
"""

from __future__ import annotations

from typing import Any

from memplan.interop.draft import Draft, Source

# What saving an adapter writes and training does not read.
_ABOUT_THE_FILE = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "megatron_config",
    "megatron_core",
)  # fmt: skip


def read_adapter(source: Source, draft: Draft) -> None:
    """An adapter config: the whole object becomes `peft`."""
    config: dict[str, Any] = {}
    for key, value in source.data.items():
        source.take(key)
        if key in _ABOUT_THE_FILE or value is None:
            draft.ignored.append(source.full(key))
        elif key == "peft_type":
            config[key] = str(value).upper()
        else:
            config[key] = sorted(value) if isinstance(value, set | frozenset) else value
    draft.use(source, "peft_type", "peft", config)
    if source.has("base_model_name_or_path"):
        draft.facts["adapter_base"] = (source, "base_model_name_or_path")  # unless another file names the model
    for key in config:
        if key != "peft_type":
            draft.note(source, key, f"peft.{key}")


def read_bitsandbytes(source: Source, draft: Draft) -> None:
    """A BitsAndBytesConfig, or another `quantization_config` as transformers writes it."""
    method = source.text("quant_method") or "bitsandbytes"
    if method != "bitsandbytes":
        source.take_all()
        draft.use(source, "quant_method", "quantization_config", dict(source.data))
        return
    for key in ("load_in_4bit", "load_in_8bit"):
        source.take(f"_{key}")
        if source.flag(key):
            draft.use(source, key, key)
    if source.flag("load_in_4bit"):
        draft.use(source, "bnb_4bit_quant_type", "bnb_4bit_quant_type")
        draft.use(source, "bnb_4bit_use_double_quant", "bnb_4bit_use_double_quant")
        for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            value = source.text(key)
            draft.use(source, key, key, value.removeprefix("torch.") if value else None)
    source.take(
        "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
        "llm_int8_threshold",
    )  # fmt: skip
    skip = source.names("llm_int8_skip_modules")
    if skip:
        draft.use(source, "llm_int8_skip_modules", "llm_int8_skip_modules", [skip] if isinstance(skip, str) else skip)
    if source.flag("llm_int8_enable_fp32_cpu_offload"):
        draft.refuse(source, "llm_int8_enable_fp32_cpu_offload", "parts of the model offloaded to the CPU")
    if source.flag("llm_int8_has_fp16_weight"):
        draft.refuse(source, "llm_int8_has_fp16_weight", "LLM.int8 layers that keep 16-bit weights")
