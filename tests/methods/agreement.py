"""Walk and trace of small models under a method, side by side; shared by the tests of the methods' steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memplan.compare import Comparison, compare
from memplan.recipe import Recipe

# Odd sizes, so that rounding to blocks shows; grouped heads; two layers, so that folding has something to fold.
DECODER: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 5003, "max_position_embeddings": 4096, "dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {"model_type": "llama", **DECODER}
QWEN2 = {"model_type": "qwen2", **DECODER}
GPT2 = {
    "model_type": "gpt2", "n_embd": 384, "n_layer": 2, "n_head": 6, "vocab_size": 5003, "n_positions": 1024,
    "dtype": "bfloat16",
}  # fmt: skip
# More than 1536 rows: bitsandbytes always dequantizes there, whatever the GPU.
QUANTIZED: dict[str, Any] = {"load_in_4bit": True, "micro_batch_size": 13, "sequence_length": 129}

# Precisions, checkpointing, attention and masks that a rewrite has to follow, each at least once.
COURSES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "amp": {"precision": "amp"},
    "fp32": {"precision": "fp32"},
    "16-bit adapters": {"autocast_adapter_dtype": False},
    "float16": {"dtype": "float16", "precision": "pure"},
    "checkpointed": {"activation_checkpointing": True},
    "reentrant": {"activation_checkpointing": "reentrant"},
    "checkpointed, amp, eager": {
        "activation_checkpointing": True, "precision": "amp", "attn_implementation": "eager",
    },
    "padded, accumulated": {"padding": True, "gradient_accumulation_steps": 2},
}  # fmt: skip


def recipe(**keys: Any) -> Recipe:
    """A recipe for the small Llama at odd sizes."""
    return Recipe(**{"model": LLAMA, "micro_batch_size": 2, "sequence_length": 129, **keys})


@dataclass(frozen=True)
class Agreement:
    """Cases, all walked and traced when the first of them is checked."""

    cases: Mapping[str, Mapping[str, Any]]

    @cached_property
    def compared(self) -> dict[str, Comparison]:
        """Every case walked and traced."""
        return dict(zip(self.cases, compare([recipe(**keys) for keys in self.cases.values()]), strict=True))

    def check(self, name: str) -> None:
        """Every phase's peak and end agree to the byte, and so do the counts."""
        comparison = self.compared[name]
        assert not comparison.refusal
        assert comparison.parameters_equal
        assert [phase for phase in comparison.phases if not phase.is_equal] == []
