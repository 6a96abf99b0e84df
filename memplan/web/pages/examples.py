"""What a first visitor may start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A recipe as a link."""

    title: str
    text: str
    keys: Mapping[str, Any]


EXAMPLES = (
    Example(
        "QLoRA of Llama-3.1-8B on one RTX 4090",
        "4-bit base, rank 16, paged 8-bit Adam",
        {
            "model": "meta-llama/Llama-3.1-8B",
            "method": "qlora",
            "lora_r": 16,
            "optim": "paged_adamw_8bit",
            "micro_batch_size": 1,
            "gpu": "rtx-4090",
        },
    ),
    Example(
        "LoRA of Mistral-7B on an A100 80GB",
        "16-bit base, all linear layers, checkpointing",
        {
            "model": "mistralai/Mistral-7B-v0.1",
            "method": "lora",
            "lora_r": 16,
            "target_modules": "all-linear",
            "micro_batch_size": 4,
            "activation_checkpointing": True,
            "gpu": "a100-80gb",
        },
    ),
    Example(
        "Every parameter of Llama-3.2-1B on an RTX 3090",
        "16 bits throughout, AdamW",
        {
            "model": "meta-llama/Llama-3.2-1B",
            "method": "full",
            "precision": "pure",
            "micro_batch_size": 2,
            "sequence_length": 1024,
            "activation_checkpointing": True,
            "gpu": "rtx-3090",
        },
    ),
    Example(
        "Every parameter of Llama-3.1-8B on an H100",
        "the one that everybody tries first",
        {"model": "meta-llama/Llama-3.1-8B", "method": "full", "micro_batch_size": 1, "gpu": "h100-sxm-80gb"},
    ),
)
