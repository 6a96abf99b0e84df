"""What the forward pass of each decoder leaves alive for backward, against the traced step of the real model."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from memplan.errors import MemplanError
from memplan.families import Head
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.trace.spec import TraceSpec
from tests.families.recordings import record_config

BATCH, SEQUENCE = 2, 256
LATENT = {
    "num_key_value_heads": 8, "kv_lora_rank": 128, "q_lora_rank": 192, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    "v_head_dim": 64, "moe_intermediate_size": 256, "num_experts_per_tok": 2, "n_routed_experts": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip


def decoder(model_type: str, **keys: Any) -> dict[str, Any]:
    """Three layers, large enough that most tensors take more than one block."""
    sizes = {
        "hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 1024, "vocab_size": 4096, "max_position_embeddings": 2048,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return {"model_type": model_type, **sizes, **keys}


CONFIGS = {
    "llama": decoder("llama"),
    "mistral": decoder("mistral", sliding_window=128),
    "qwen2": decoder("qwen2"),
    "qwen3": decoder("qwen3", head_dim=64),
    "smollm3": decoder("smollm3", no_rope_layer_interval=3),
    "granite": decoder("granite"),
    "phi3": decoder("phi3"),
    "phi3, partly rotated": decoder("phi3", partial_rotary_factor=0.5),
    "olmo": decoder("olmo"),
    "olmo2": decoder("olmo2", num_key_value_heads=8),
    "stablelm": decoder("stablelm", num_key_value_heads=8),
    "starcoder2": decoder("starcoder2"),
    "phi": decoder("phi"),
    "cohere": decoder("cohere"),
    "gemma": decoder("gemma", head_dim=64, hidden_act="gelu_pytorch_tanh"),
    "gemma2": decoder("gemma2", head_dim=64, sliding_window=128),
    "gemma3_text": decoder("gemma3_text", head_dim=64, sliding_window=128, sliding_window_pattern=2),
    "mixtral": decoder("mixtral", num_local_experts=8),
    "qwen2_moe": decoder("qwen2_moe", num_experts=8, moe_intermediate_size=256, shared_expert_intermediate_size=512),
    "qwen3_moe": decoder("qwen3_moe", num_experts=8, moe_intermediate_size=256, head_dim=64),
    "deepseek_v2": decoder("deepseek_v2", **LATENT),
    "deepseek_v3": decoder("deepseek_v3", **LATENT, n_group=4, topk_group=2),
    "gpt_oss": decoder("gpt_oss", num_local_experts=8, num_experts_per_tok=2, head_dim=64, sliding_window=128),
}


def attention_of(name: str) -> str:
    """gemma2 and gpt_oss refuse sdpa (`_supports_sdpa = False`)."""
    return "eager" if name in ("gemma2", "gpt_oss") else "sdpa"


@cache
def traces() -> dict[str, TraceResult | MemplanError]:
    specs = [
        TraceSpec(
            model_config=config, batch=BATCH, sequence=SEQUENCE, attn_implementation=attention_of(name), num_steps=1
        )
        for name, config in CONFIGS.items()
    ]
    return dict(zip(CONFIGS, run_many(specs), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_leaves_the_same_blocks_alive(name: str) -> None:
    trace = traces()[name]
    assert isinstance(trace, TraceResult), trace
    settings = StepSettings(batch=BATCH, sequence=SEQUENCE, attn_implementation=attention_of(name), use_cache=True)
    recording = record_config(CONFIGS[name], Head(Task.CAUSAL_LM), settings, fold=False)
    alive: set[int] = set()
    for segment in recording.segments:
        if segment.phase == "forward":
            for event in segment.events:
                if event >= 0:
                    alive.add(event)
                else:
                    alive.remove(~event)
    ours = Counter(recording.infos[index].size_bytes for index in alive)
    theirs = Counter(storage.block_bytes for storage in trace.saved_storages(1))
    assert ours == theirs
