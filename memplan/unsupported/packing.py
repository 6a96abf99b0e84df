"""Which packed batches are walked, equal to the trace.

A packed batch is one row of B·S tokens with their position ids, as transformers' `DataCollatorWithFlattening` makes it.
"""

from __future__ import annotations

from memplan.prepare import Prepared
from memplan.recipe import Task
from memplan.resolve import Resolved

# Model types whose step on a packed row is equal to the trace, under sdpa and eager attention where they have both.
PACKED = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi3", "olmo",
        "olmo2", "mixtral", "qwen3_moe", "cohere", "starcoder2", "stablelm", "gpt2", "gpt_neox", "phi", "gpt_oss",
    }
)  # fmt: skip


def unsupported_packing(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps the recipe's packed batch from being walked."""
    values = resolved.values
    if not values["packing"]:
        return []
    model_type = str(resolved.config["model_type"])
    found = []
    if model_type not in PACKED or resolved.task is not Task.CAUSAL_LM:
        found.append(f"packed sequences of {model_type} models under a {resolved.task} head")
    if values["micro_batch_size"] * values["sequence_length"] == 1:
        found.append("a packed row of one token, which transformers does not take apart")
    if values["padding"]:
        found.append("packed sequences with padding: a packed row has no attention mask")
    if values["use_cache"]:
        found.append("packed sequences with use_cache, under which transformers does not tell the texts apart")
    if prepared.adaptation.virtual_tokens or prepared.adaptation.prefix_key_values:
        found.append(f"packed sequences with the virtual tokens of {resolved.method}")
    if values.get("eval_strategy", "no") != "no":
        found.append("evaluation on packed sequences")
    return found
