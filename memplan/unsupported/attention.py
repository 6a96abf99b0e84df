"""Which steps with the flash-attn package are walked: whole, padded and packed batches, equal to the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.prepare import Prepared
from memplan.resolve import Resolved

# Model types whose step with the flash-attn package is equal to the trace, with padding and without.
FLASH_ATTENTION_2 = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi3", "olmo",
        "olmo2", "mixtral", "qwen2_moe", "qwen3_moe", "stablelm", "starcoder2", "cohere", "phi", "gpt2", "gpt_bigcode",
        "gpt_neox", "opt", "bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "bart",
    }
)  # fmt: skip
# csrc/flash_attn/flash_api.cpp, "FlashAttention forward only supports head dimension at most 256".
LARGEST_HEAD = 256


def unsupported_flash_attention(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps the recipe's step with the flash-attn package from being walked."""
    values, model_type = resolved.values, str(resolved.config["model_type"])
    found = []
    if model_type not in FLASH_ATTENTION_2:
        found.append(f"flash_attention_2 in {model_type} models")
    head_size = head_size_of(resolved.config)
    if head_size % 8:
        found.append(f"flash_attention_2 on heads of {head_size} elements, which it pads to a multiple of 8")
    if head_size > LARGEST_HEAD:
        found.append(f"flash_attention_2 on heads of {head_size} elements: it takes {LARGEST_HEAD} at most")
    if values["padding"] and prepared.adaptation.prefix_key_values:
        found.append(f"flash_attention_2 with padding under {resolved.method}: there are more keys than queries")
    if (values["padding"] or values["packing"]) and values.get("activation_offloading"):
        found.append("flash_attention_2 on padded or packed batches with offloaded activations")
    if (values["padding"] or values["packing"]) and prepared.optimizer.updates_in_backward:
        found.append("flash_attention_2 on padded or packed batches with updates within backward")
    target = values.get("target_length")
    if values["padding"] and target is not None and target != values["sequence_length"]:
        found.append("flash_attention_2 with padding where source and target differ in length")
    if not (resolved.autocast or resolved.dtype).is_half:
        found.append(f"flash_attention_2 in {resolved.dtype}: it computes in 16 bits only")
    capability = resolved.gpu.compute_capability if resolved.gpu is not None else None
    if capability is not None and capability < (8, 0):
        found.append(
            f"flash_attention_2 on {resolved.gpu.name if resolved.gpu else ''}: it needs compute capability 8.0"
        )
    return found


def head_size_of(config: Mapping[str, Any]) -> int:
    """Elements of an attention head; 0 where the config does not say."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(width) // int(heads) if width and heads else 0
