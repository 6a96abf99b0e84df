"""What several keys decide together, once every file is read: precision, load dtype, quantization.

Sources: transformers/training_args.py (mixed_precision: fp16, else bf16, else what accelerate launches with),
transformers/integrations/deepspeed.py, deepspeed/runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from typing import Any

from memplan.dtypes import DType, parse_dtype
from memplan.interop.draft import Draft

_BNB_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")


def settle(draft: Draft) -> None:
    """Fill in the recipe keys that need more than one key of the files.

    Facts that readers leave in the draft:
        loop: framework whose default load dtype applies.
        amp: autocast dtype that the training loop asks for; absent where it says nothing.
        launcher_amp: what accelerate asks for, if the loop does not.
        adapter_base: source and key of the base model in an adapter config.
        engine: deepspeed, which keeps 16-bit weights with an fp32 copy wherever anything asks for 16 bits;
            engine_dtype and engine_policy are what its own file says.
    """
    keys, facts = draft.keys, draft.facts
    if "model" not in keys and "adapter_base" in facts:
        source, key = facts["adapter_base"]
        draft.ignored.remove(source.full(key))
        draft.use(source, key, "model")
    _engine(facts)
    if "dtype" not in keys and "loop" in facts and "master" not in facts:
        keys["dtype"] = draft.default(facts["loop"], "dtype", "dtype")
    _quantization(draft)
    if "precision" in keys:
        return
    amp = facts.get("amp") or facts.get("launcher_amp")
    if "master" in facts:
        keys["precision"] = facts["master"]
        keys["dtype"] = facts["master_dtype"]
    elif amp:
        keys["precision"], keys["autocast_dtype"] = "amp", amp
    elif "loop" in facts:
        _without_autocast(keys)


def _engine(facts: dict[str, Any]) -> None:
    """DeepSpeed casts the model itself instead of running autocast."""
    if "engine" not in facts:
        return
    dtype = facts.get("engine_dtype") or facts.get("amp") or facts.get("launcher_amp")
    if dtype:
        facts["master"], facts["master_dtype"] = facts.get("engine_policy", "master"), dtype


def _without_autocast(keys: dict[str, Any]) -> None:
    """The weights' own type is what everything runs in."""
    dtype = keys.get("dtype")
    if dtype == "auto":
        if keys.get("load_in_4bit") or keys.get("load_in_8bit") or keys.get("quantization_config"):
            keys["precision"] = "pure"
        return  # resolve takes fp32 or pure from the checkpoint
    if isinstance(dtype, str):
        keys["precision"] = "fp32" if parse_dtype(dtype) is DType.FLOAT32 else "pure"


def _quantization(draft: Draft) -> None:
    """BitsAndBytesConfig's own defaults, which differ from those of a recipe that says qlora."""
    keys = draft.keys
    if not keys.get("load_in_4bit"):
        for key in _BNB_4BIT:
            keys.pop(key, None)
        if not keys.get("load_in_8bit"):
            keys.pop("llm_int8_skip_modules", None)
        return
    for key in _BNB_4BIT:
        if key not in keys:
            keys[key] = draft.default("transformers", key, key)
