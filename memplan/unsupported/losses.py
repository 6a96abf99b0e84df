"""Which losses are walked for which models; everything here is equal to the trace of the library that computes it."""

from __future__ import annotations

from memplan.prepare import Prepared
from memplan.recipe import Loss, Stack, Task
from memplan.resolve import Resolved

# Model types whose step with Liger's fused loss is equal to the trace (liger-kernel 0.8.5).
FUSED_LINEAR = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "mixtral",
        "qwen3_moe",
    }
)  # fmt: skip
# Model types whose step with torchtune's loss over chunks is equal to the trace (torchtune 0.6.1). What scales or caps its
# logits between head and loss is not among them: torchtune's output does not.
CHUNKED = (FUSED_LINEAR - {"gemma2"}) | {"starcoder2", "stablelm", "olmo"}


def unsupported_losses(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps the recipe's loss from being walked."""
    loss = resolved.values["loss"]
    if loss is Loss.DEFAULT or resolved.values["stack"] not in (Stack.TRANSFORMERS, Stack.LIGER):
        return []  # another stack's loss is the stack's
    model_type = str(resolved.config["model_type"])
    if resolved.task is not Task.CAUSAL_LM:
        return [f"the {loss} loss of a {resolved.task} model: it is one over the tokens of a causal language model"]
    found = []
    if model_type not in (FUSED_LINEAR if loss is Loss.FUSED_LINEAR else CHUNKED):
        found.append(f"the {loss} loss of {model_type} models")
    if loss is Loss.CHUNKED and resolved.config.get("final_logit_softcapping"):
        found.append("the chunked loss of logits that are capped")
    if adapts_head(prepared):
        found.append(f"the {loss} loss with an adapter on lm_head")
    if loss is Loss.FUSED_LINEAR and all(_is_head(entry.name) for entry in prepared.state.stored if entry.trainable):
        found.append("the fused_linear loss where only lm_head is trained: Liger computes no gradient then")
    if resolved.values.get("eval_strategy", "no") != "no":
        found.append(f"evaluation with the {loss} loss")
    return found


def adapts_head(prepared: Prepared) -> bool:
    """Whether the method puts anything on `lm_head`."""
    return any(_is_head(entry.module) for entry in prepared.adaptation.added)


def _is_head(name: str) -> bool:
    return name.partition(".")[0] == "lm_head"
