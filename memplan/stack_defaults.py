"""What a training loop sets where the recipe says nothing, as its version has it."""

from __future__ import annotations

import re
from typing import Any

from memplan.catalog.framework_defaults import framework_default, in_range, reference_version
from memplan.errors import InvalidValueError
from memplan.recipe import Loss, Precision, Recipe, Stack

# Before, the checkpoint's own type decides, as under transformers.
LOADS_IN_FLOAT32 = ">=1.0"

# From this max_seq_length on Unsloth's checkpoints keep their inputs in host memory.
OFFLOADS_FROM = 512
_UNSLOTH = "unsloth 2026.10.9"
# Its `get_peft_model` (models/llama.py) where nothing is said, and the model types that it is known for here.
UNSLOTH_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
UNSLOTH_LORA: dict[str, Any] = {
    "r": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

Defaults = dict[str, tuple[Any, str]]


def stack_defaults(recipe: Recipe) -> Defaults:
    """Values and sources of the keys in which the recipe's stack differs from transformers' Trainer.

    Raises:
        InputError, InvalidValueError: the defaults of the recipe's `stack_version` are not known, or no stack uses one.
    """
    if recipe.stack_version is not None and recipe.stack in (None, Stack.TRANSFORMERS):
        others = ", ".join(stack for stack in Stack if stack is not Stack.TRANSFORMERS)
        raise InvalidValueError("stack_version", recipe.stack_version, f"only beside another stack ({others})")
    if recipe.stack_version is not None and not re.match(r"v?\d+(\.\d+)?", recipe.stack_version):
        raise InvalidValueError("stack_version", recipe.stack_version, "a version such as 1.16.0")
    if recipe.stack is Stack.LIGER:
        return {
            "loss": (Loss.FUSED_LINEAR, "Liger's patches switch fused_linear_cross_entropy on (liger-kernel 0.8.5)")
        }
    if recipe.stack is Stack.TRL:
        return _trl(recipe)
    if recipe.stack is Stack.TORCHTUNE:
        return _torchtune(recipe)
    if recipe.stack is Stack.UNSLOTH:
        return _unsloth(recipe)
    return {}


def _trl(recipe: Recipe) -> Defaults:
    version = recipe.stack_version or reference_version("trl")

    def default(key: str) -> tuple[Any, str]:
        row = framework_default("trl", key, version)
        return row.value, f"TRL {version}: {row.source}"

    full_logits, source = default("full_logits")
    chunked = not full_logits or default("loss_type")[0] == "chunked_nll"
    found: Defaults = {
        "loss": (Loss.CHUNKED if chunked else Loss.DEFAULT, source),
        "activation_checkpointing": default("gradient_checkpointing"),
    }
    loads_in_float32 = in_range(version, LOADS_IN_FLOAT32)
    if _is_quantized(recipe) and loads_in_float32:
        for key in ("prepare_model_for_kbit_training", "autocast_adapter_dtype"):
            found[key] = default(key)
    if recipe.precision is None:
        bf16, source = default("bf16")
        if bf16:
            found["precision"] = (Precision.AMP, source)
            if loads_in_float32:
                found["dtype"] = default("dtype")
    return found


def _torchtune(recipe: Recipe) -> Defaults:
    version = recipe.stack_version or reference_version("torchtune")

    def default(key: str) -> tuple[Any, str]:
        row = framework_default("torchtune", key, version)
        return row.value, f"torchtune {version}: {row.source}"

    keys = ("loss", "optim", "max_grad_norm", "activation_checkpointing", "autocast_adapter_dtype")
    found = {key: default(key) for key in keys}
    if recipe.precision is None and recipe.dtype is None:
        found["dtype"] = default("dtype")
        found["precision"] = (Precision.PURE, found["dtype"][1])
    return found


def _unsloth(recipe: Recipe) -> Defaults:
    """FastLanguageModel and SFTTrainer as Unsloth patches it."""
    found: Defaults = {
        "loss": (Loss.FUSED_LINEAR, f"{_UNSLOTH}: unsloth_zoo/fused_losses/fused_linear.py"),
        "packing": (True, f"{_UNSLOTH}: trainer.py turns padding_free on, which makes one row of a batch"),
        "optim": ("adamw_8bit", f"{_UNSLOTH}: models/rl.py"),
        "prepare_model_for_kbit_training": (False, f"{_UNSLOTH}: its own prepares the model, and casts no norms"),
    }
    if recipe.precision is None:
        found["precision"] = (Precision.AMP, f"{_UNSLOTH}: models/rl.py, autocast in the weights' type")
        found["dtype"] = ("bfloat16", f"{_UNSLOTH}: from_pretrained on GPUs with bfloat16")
    if recipe.activation_checkpointing is None:
        length = recipe.sequence_length
        offloads = length is None or length >= OFFLOADS_FROM
        source = f"{_UNSLOTH}: use_gradient_checkpointing='unsloth', which below 512 tokens is plain checkpointing"
        found["activation_checkpointing"] = ("reentrant", source)
        if offloads:
            found["activation_offloading"] = (True, source)
    return found


def _is_quantized(recipe: Recipe) -> bool:
    return recipe.method == "qlora" or bool(recipe.load_in_4bit or recipe.load_in_8bit)
