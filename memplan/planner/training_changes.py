"""Changes that make it another training run: precision, adapters, a quantized base.

Sources: PyTorch's automatic mixed precision recipe; Hu et al., arXiv 2106.09685 (LoRA); Dettmers et al., arXiv 2305.14314
(QLoRA); transformers 5.23 `BitsAndBytesConfig`; torch 2.13 torch/amp/grad_scaler.py (float16 gradients are not unscaled).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memplan.dtypes import DType
from memplan.methods import get_method
from memplan.planner import pain
from memplan.planner.result import Change, Tier
from memplan.recipe import Precision, Task
from memplan.resolve import Resolved

# What is proposed where the run has no rank yet: PEFT's example for causal language models.
PROPOSED_RANK = 16
_BFLOAT16_SINCE = (8, 0)


def has_bfloat16(base: Resolved) -> bool:
    """Whether the GPU computes in bfloat16; one that is not named does."""
    gpu = base.gpu
    return gpu is None or gpu.compute_capability is None or gpu.compute_capability >= _BFLOAT16_SINCE


def setting_peft(base: Resolved, key: str, flat: str, value: Any) -> dict[str, Any]:
    """Recipe keys that set `key` of the adapter config, where the user has it: in `peft`, or by its flat name."""
    given = base.recipe.peft or {}
    return {"peft": {**given, key: value}} if key in given else {flat: value}


def precision_changes(base: Resolved) -> Iterator[Change]:
    """16 bits in place of 32: in the products alone, or in the weights as well."""
    if base.quantization is not None or base.dtype is not DType.FLOAT32:
        return
    full = get_method(base.method).peft_type is None
    if base.precision is Precision.FP32:
        yield _different(
            "mixed-precision", "precision", "compute in 16 bits (autocast)", {"precision": "amp"}, 0, pain.SIXTEEN_BITS
        )
    if not has_bfloat16(base):
        return  # GradScaler refuses gradients in float16, so weights stay in 32 bits
    if full:
        sets = {"precision": "pure", "dtype": "bfloat16", "autocast_dtype": None}
        title = "weights, gradients and states in bfloat16"
        yield _different("pure-bfloat16", "precision", title, sets, 1, pain.SIXTEEN_BIT_WEIGHTS)
    elif base.precision is Precision.FP32:
        sets = {"precision": "pure", "dtype": "bfloat16"}
        yield _different("bfloat16-base", "precision", "frozen weights in bfloat16", sets, 1, pain.SIXTEEN_BITS)
    else:
        sets = {"dtype": "bfloat16"}
        yield _different("bfloat16-base", "precision", "frozen weights in bfloat16", sets, 1, pain.SIXTEEN_BITS)


def adapter_changes(base: Resolved) -> Iterator[Change]:
    """What an adapter can do without: its copies in float32, its dropout."""
    half = (base.autocast or base.dtype).is_half
    if base.values.get("autocast_adapter_dtype") and half and has_bfloat16(base):
        sets: dict[str, Any] = {"autocast_adapter_dtype": False}
        yield _different("adapter-16-bit", "adapter", "adapters in the base's 16 bits", sets, 0, pain.SIXTEEN_BITS)
    dropout = base.peft.get("lora_dropout")
    if dropout:
        sets = setting_peft(base, "lora_dropout", "lora_dropout", 0.0)
        yield _different("no-lora-dropout", "adapter", "no dropout in the adapters", sets, 1, pain.WITHOUT_DROPOUT)


def method_changes(base: Resolved) -> Iterator[Change]:
    """LoRA instead of every parameter; the frozen base in 8 or 4 bits."""
    if base.quantization is not None:
        if base.quantization.scheme.is_4bit_bitsandbytes and not base.quantization.double_quant:
            sets: dict[str, Any] = {"bnb_4bit_use_double_quant": True}
            if base.recipe.quantization_config is None and not base.model.config.get("quantization_config"):
                title = "quantize the constants as well"
                yield _different("double-quantization", "method", title, sets, 0, pain.NESTED_QUANTIZATION)
        return
    mixed = {"precision": "amp"} if base.recipe.precision is not None else {}
    known = get_method(base.method)
    if base.method == "full" and base.recipe.trainable is None and base.task is Task.CAUSAL_LM:
        rank = {"lora_r": PROPOSED_RANK, "target_modules": "all-linear"}
        title = f"train adapters of rank {PROPOSED_RANK}"
        lora = {"method": "lora", **rank}
        if base.precision in (Precision.MASTER, Precision.MASTER_FP32_GRADS):
            lora["precision"] = "pure"
        yield _different("lora", "method", f"{title} (LoRA)", lora, 0, pain.ADAPTERS_INSTEAD)
        qlora = {"method": "qlora", **rank, **mixed}
        both = pain.ADAPTERS_INSTEAD + pain.FOUR_BIT_BASE
        yield _different("qlora", "method", f"{title} on a base in 4 bits (QLoRA)", qlora, 2, both)
    elif known.peft_type == "LORA" and base.method == "lora":
        eight = {"load_in_8bit": True, **mixed}
        yield _different("base-8-bit", "method", "the frozen base in 8 bits", eight, 1, pain.EIGHT_BIT_BASE)
        four = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16" if has_bfloat16(base) else "float16",
        }
        title = "the frozen base in 4 bits (QLoRA)"
        yield _different("base-4-bit", "method", title, {**four, **mixed}, 2, pain.FOUR_BIT_BASE)


def _different(name: str, knob: str, title: str, sets: dict[str, Any], strength: int, moves: int) -> Change:
    tier = Tier.DIFFERENT_TRAINING
    return Change(id=name, knob=knob, tier=tier, title=title, sets=sets, strength=strength, pain=moves)
