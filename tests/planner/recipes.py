"""Ten runs as people ask for them, each on a card that does not hold it."""

from __future__ import annotations

from typing import Any

LORA = {"method": "lora", "lora_r": 16, "target_modules": "all-linear"}
REAL: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B, full, RTX 4090": {
        "model": "meta-llama/Llama-3.2-1B", "micro_batch_size": 8, "sequence_length": 2048, "gpu": "rtx-4090",
    },
    "SmolLM2-1.7B, full in float32 under autocast, A6000": {
        "model": "HuggingFaceTB/SmolLM2-1.7B", "dtype": "float32", "precision": "amp", "micro_batch_size": 16,
        "sequence_length": 1024, "gpu": "rtx-a6000",
    },
    "Llama-3.1-8B, full, H100": {
        "model": "meta-llama/Llama-3.1-8B", "micro_batch_size": 1, "sequence_length": 4096, "optim": "adamw_torch",
        "gpu": "h100",
    },
    "Llama-3.1-8B, LoRA, RTX 4090": {
        "model": "meta-llama/Llama-3.1-8B", **LORA, "micro_batch_size": 8, "sequence_length": 1024, "gpu": "rtx-4090",
    },
    "Mistral-7B, QLoRA, RTX 3090": {
        "model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "micro_batch_size": 16, "sequence_length": 2048,
        "gpu": "rtx-3090",
    },
    "Qwen2.5-7B, LoRA, long, A100 80GB": {
        "model": "Qwen/Qwen2.5-7B", **LORA, "lora_dropout": 0.05, "micro_batch_size": 4, "sequence_length": 8192,
        "gpu": "a100-80gb",
    },
    "Qwen3-4B, LoRA, eager attention, L40S": {
        "model": "Qwen/Qwen3-4B", **LORA, "attn_implementation": "eager", "micro_batch_size": 2,
        "sequence_length": 4096, "gpu": "l40s",
    },
    "Gemma-2-9B, QLoRA, RTX 4090": {
        "model": "google/gemma-2-9b", "method": "qlora", "micro_batch_size": 2, "sequence_length": 4096,
        "gpu": "rtx-4090",
    },
    "Phi-3-mini, full, A100 40GB": {
        "model": "microsoft/Phi-3-mini-4k-instruct", "micro_batch_size": 2, "sequence_length": 2048,
        "optim": "adamw_torch", "gpu": "a100-40gb",
    },
    "TinyLlama-1.1B, LoRA, T4": {
        "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", **LORA, "dtype": "float32", "precision": "amp",
        "micro_batch_size": 8, "sequence_length": 2048, "gpu": "t4",
    },
}  # fmt: skip
