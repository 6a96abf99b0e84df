"""Models whose activations are large beside their weights, so that a budget of a few GiB divides the space of changes."""

from __future__ import annotations

from typing import Any

from memplan.units import GIB

WIDE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096,
    "dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
# Weights and states outweigh activations: the optimizer and the method decide.
HEAVY: dict[str, Any] = {**WIDE, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}

FULL: dict[str, Any] = {"model": WIDE, "micro_batch_size": 8, "sequence_length": 1024}
LORA: dict[str, Any] = {**FULL, "method": "lora", "lora_r": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}
EAGER: dict[str, Any] = {**FULL, "dtype": "float32", "attn_implementation": "eager", "optim": "adamw_torch"}
QLORA: dict[str, Any] = {**FULL, "method": "qlora", "peft": {"r": 32, "lora_dropout": 0.05}, "keep_outputs": True}
ACCUMULATED: dict[str, Any] = {
    **FULL, "model": HEAVY, "gradient_accumulation_steps": 4, "micro_batch_size": 2, "optim": "adamw_torch",
}  # fmt: skip

# Recipe and budgets at which the answers differ: from one mild change to nothing.
CASES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "full": (FULL, (13.0, 8.0, 5.5, 4.2, 3.6, 2.6)),
    "LoRA": (LORA, (14.0, 8.0, 5.5, 4.0, 3.0, 2.5)),
    "eager": (EAGER, (24.0, 12.0, 8.0, 6.0, 4.0)),
    "QLoRA": (QLORA, (10.0, 7.0, 5.0, 3.5, 2.5)),
    "accumulated": (ACCUMULATED, (18.0, 14.0, 10.0, 7.0, 5.0)),
}


def budget(gib: float) -> int:
    """GiB as bytes."""
    return int(gib * GIB)
