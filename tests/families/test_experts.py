"""Mixture-of-experts decoders against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced
from tests.families.test_decoders import name_of, small

MODEL_TYPES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")

LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12,
    "moe_intermediate_size": 28, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_routed_experts": 8,
}  # fmt: skip

SMALL = [
    small("mixtral", num_local_experts=5, num_experts_per_tok=3, tie_word_embeddings=True, router_jitter_noise=0.1),
    small("mixtral", head_dim=16, sliding_window=8),
    small("qwen2_moe", num_experts=6, moe_intermediate_size=28, shared_expert_intermediate_size=36, mlp_only_layers=[0]),
    small("qwen2_moe", num_experts=6, moe_intermediate_size=28, decoder_sparse_step=2, qkv_bias=False),
    small("qwen3_moe", num_experts=9, moe_intermediate_size=28, head_dim=16, attention_bias=True, norm_topk_prob=True),
    small("deepseek_v2", **LATENT, q_lora_rank=None, mlp_bias=True, n_shared_experts=3),
    small("deepseek_v2", **LATENT, q_lora_rank=18, topk_method="group_limited_greedy", n_group=4, topk_group=2),
    small("deepseek_v3", **LATENT, q_lora_rank=18, attention_bias=True, n_group=4, topk_group=2),
    small("deepseek_v3", **LATENT, q_lora_rank=None, rope_interleave=False, n_group=2, topk_group=1),
    small("gpt_oss", num_local_experts=5, num_experts_per_tok=3, head_dim=16, sliding_window=8),
    small("gpt_oss", num_local_experts=5, num_experts_per_tok=2, head_dim=16, attention_bias=False),
]  # fmt: skip


@pytest.mark.parametrize(("card_id", "task"), cases_of(*MODEL_TYPES))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize("config", SMALL, ids=name_of)
@pytest.mark.parametrize("task", [Task.CAUSAL_LM, Task.FEATURE_EXTRACTION])
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("config", SMALL, ids=name_of)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
def test_every_parameter_gets_its_gradient(config: dict[str, Any], attention: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=16, attn_implementation=attention, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.CAUSAL_LM), settings)


@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_every_parameter_gets_its_gradient_before_ampere(config: dict[str, Any]) -> None:
    settings = StepSettings(batch=2, sequence=16, compute_capability=(7, 5))
    assert_balanced(config, Head(Task.CAUSAL_LM), settings)
