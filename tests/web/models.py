"""A model that costs next to nothing, for tests that ask about something else."""

from __future__ import annotations

SMALL = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
