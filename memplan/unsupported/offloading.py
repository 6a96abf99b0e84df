"""Which offloading of activations is walked, for which runs: those that are equal to the trace of the code that does it."""

from __future__ import annotations

from memplan.recipe import Offloading, Stack
from memplan.resolve import Resolved

# Model types whose step with transformers' offloaded checkpoints is equal to the trace. Layers of the others are given more
# than hidden states by position, and what a checkpoint keeps of that is offloaded as well.
CHECKPOINTS = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo",
        "olmo2", "stablelm", "starcoder2", "cohere", "opt", "gptj", "gpt_neox", "gpt_bigcode", "bloom", "modernbert",
        "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3",
    }
)  # fmt: skip
# Methods whose step with TRL's offloaded activations is equal to the trace (trl 1.16.0).
SAVED_TENSORS = frozenset(
    {
        "full", "lora", "qlora", "rslora", "dora", "ia3", "loha", "lokr", "vera", "oft", "boft", "miss", "fourierft", "beft",
        "ln_tuning", "randlora", "hra", "shira", "gralora", "delora",
    }
)  # fmt: skip


def unsupported_offloading(resolved: Resolved) -> list[str]:
    """What keeps the recipe's offloading from being walked."""
    variant, stack = resolved.values.get("activation_offloading"), resolved.values["stack"]
    if not variant or stack is Stack.UNSLOTH:
        return []  # Unsloth's own is in `unsupported_unsloth`
    if variant == Offloading.CHECKPOINTS:
        return _checkpoints(resolved)
    if variant == Offloading.SAVED_TENSORS:
        return _saved_tensors(resolved)
    return [f"hidden states that checkpoints keep in host memory under stack {stack}"]


def _checkpoints(resolved: Resolved) -> list[str]:
    values = resolved.values
    found = []
    model_type = resolved.config["model_type"]
    if model_type not in CHECKPOINTS:
        found.append(
            f"offloaded checkpoints of {model_type} models, whose layers are given more than hidden states by position"
        )
    if values["stack"] not in (Stack.TRANSFORMERS, Stack.TRL, Stack.LIGER):
        found.append(f"offloaded checkpoints under stack {values['stack']}")
    return found


def _saved_tensors(resolved: Resolved) -> list[str]:
    values = resolved.values
    found = []
    if values["stack"] is not Stack.TRL:
        return [f"saved tensors offloaded to the CPU under stack {values['stack']}: what is walked is TRL's"]
    if values["activation_checkpointing"] not in (True, "non-reentrant"):
        found.append(
            "activations offloaded under TRL without activation_checkpointing true: of what a layer saves, views and copies "
            "of views go to the host by rules of their own"
        )
    if resolved.method not in SAVED_TENSORS:
        found.append(f"the offloaded activations of {resolved.method} under TRL")
    if values.get("merge_and_unload"):
        found.append("merging after offloaded activations under TRL, whose manager holds part of the last graph")
    return found
