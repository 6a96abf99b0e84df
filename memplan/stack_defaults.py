"""What a training loop sets where the recipe says nothing, as its version has it."""

from __future__ import annotations

import re
from typing import Any

from memplan.catalog.framework_defaults import framework_default, in_range, reference_version
from memplan.errors import InvalidValueError
from memplan.recipe import Loss, Precision, Recipe, Stack

# Before, the checkpoint's own type decides, as under transformers.
LOADS_IN_FLOAT32 = ">=1.0"

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


def _is_quantized(recipe: Recipe) -> bool:
    return recipe.method == "qlora" or bool(recipe.load_in_4bit or recipe.load_in_8bit)
