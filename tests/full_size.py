"""`python -m tests.full_size`: ten real recipes at full size, the estimate beside the full-depth trace of the real model.

Prints a table and ends with 1 where an allocated peak is off by more than 0.2 % or a reserved one by more than 1 %. Takes some
minutes and up to a few GiB of memory, so it is not among the tests.
"""

from __future__ import annotations

import sys
import time

from memplan.engine import estimate
from memplan.estimate import Estimate
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.cli import answer

RECIPES = {
    "Llama-3.1-8B, full": {"model": "meta-llama/Llama-3.1-8B", "micro_batch_size": 1, "sequence_length": 2048},
    "Mistral-7B, LoRA": {
        "model": "mistralai/Mistral-7B-v0.1", "method": "lora", "target_modules": "all-linear", "micro_batch_size": 4,
        "sequence_length": 1024,
    },
    "Qwen2.5-7B, QLoRA": {"model": "Qwen/Qwen2.5-7B", "method": "qlora", "micro_batch_size": 4, "sequence_length": 2048},
    "Llama-3.1-70B, QLoRA": {
        "model": "meta-llama/Llama-3.1-70B", "method": "qlora", "micro_batch_size": 1, "sequence_length": 4096,
        "optim": "paged_adamw_8bit",
    },
    "Gemma-2-9B, LoRA, checkpointed": {
        "model": "google/gemma-2-9b", "method": "lora", "activation_checkpointing": True, "micro_batch_size": 2,
        "sequence_length": 1024,
    },
    "Qwen3-4B, full, amp, accumulated": {
        "model": "Qwen/Qwen3-4B", "precision": "amp", "dtype": "float32", "gradient_accumulation_steps": 4,
        "activation_checkpointing": True, "micro_batch_size": 2, "sequence_length": 2048,
    },
    "Mixtral-8x7B, LoRA": {
        "model": "mistralai/Mixtral-8x7B-v0.1", "method": "lora", "target_modules": ["q_proj", "v_proj"],
        "activation_checkpointing": True, "micro_batch_size": 1, "sequence_length": 2048,
    },
    "T5-3B, full": {
        "model": "google-t5/t5-3b", "micro_batch_size": 4, "sequence_length": 512, "optim": "adafactor",
    },
    "BERT-large, classified": {
        "model": "google-bert/bert-large-uncased", "task": "sequence-classification", "micro_batch_size": 32,
        "sequence_length": 256, "padding": True,
    },
    "GPT-2 XL, full, fp32": {"model": "openai-community/gpt2-xl", "precision": "fp32", "micro_batch_size": 2,
                             "sequence_length": 1024},
}  # fmt: skip
ALLOCATED_GOAL, RESERVED_GOAL = 0.002, 0.01


def error(mine: int, theirs: int) -> float:
    """Relative to the trace."""
    return mine / theirs - 1


def row(name: str, mine: Estimate, theirs: Estimate, seconds: float) -> bool:
    """Print one line; whether it meets the goals."""
    live = error(mine.peak.live_bytes, theirs.peak.live_bytes)
    allocated = error(mine.peak.allocated_bytes, theirs.peak.allocated_bytes)
    reserved = error(mine.peak.reserved_bytes, theirs.peak.reserved_bytes)
    meets = abs(allocated) <= ALLOCATED_GOAL and abs(reserved) <= RESERVED_GOAL and not mine.unsupported
    print(
        f"{name:34s} {theirs.peak.allocated_bytes / 2**30:8.2f} GiB  live {live:+8.4%}  allocated {allocated:+8.4%}  "
        f"reserved {reserved:+8.4%}  trace {seconds:5.1f} s  {'ok' if meets else 'MISSED'}  {'; '.join(mine.unsupported)}",
        flush=True,
    )
    return meets


def main() -> int:
    """Print the table."""
    met = True
    for name, keys in RECIPES.items():
        recipe = Recipe(**keys)  # type: ignore[arg-type]
        mine = estimate(recipe)
        started = time.perf_counter()
        theirs = answer(resolve(recipe))
        met = row(name, mine, theirs, time.perf_counter() - started) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
