"""The model of compute against torch.utils.flop_counter on real models, product for product."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.flops import FlopCount, flop_model
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils.flop_counter import (  # noqa: E402
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}
PHI3 = {**LLAMA, "model_type": "phi3", "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {**GROUPED, "model_type": "gemma2", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
ALL_LINEAR = {"method": "lora", "lora_r": 4, "target_modules": "all-linear"}
ATTENTION_ONLY = {"method": "lora", "lora_r": 4, "target_modules": ["q_proj", "v_proj"]}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full, eager": (LLAMA, {"attn_implementation": "eager"}),
    "full, fused": (LLAMA, {}),
    "full, grouped heads, tied": (GROUPED, {"attn_implementation": "eager"}),
    "full, checkpointed": (LLAMA, {"attn_implementation": "eager", "activation_checkpointing": True}),
    "full, checkpointed, reentrant": (
        LLAMA,
        {"attn_implementation": "eager", "activation_checkpointing": "reentrant"},
    ),
    "full, fused, checkpointed": (LLAMA, {"activation_checkpointing": True}),
    "LoRA, all linear": (LLAMA, {"attn_implementation": "eager", **ALL_LINEAR}),
    "LoRA, all linear, checkpointed": (
        LLAMA,
        {"attn_implementation": "eager", "activation_checkpointing": True, **ALL_LINEAR},
    ),
    "LoRA, q and v, fused": (LLAMA, ATTENTION_ONLY),
    "LoRA, q and v, checkpointed": (
        LLAMA,
        {"attn_implementation": "eager", "activation_checkpointing": True, **ATTENTION_ONLY},
    ),
    "last layer only": (LLAMA, {"trainable": ["model.layers.2"]}),
    "head only": (LLAMA, {"trainable": ["lm_head"]}),
    "phi3, LoRA": (PHI3, {**ALL_LINEAR}),
    "gpt2, checkpointed": (GPT2, {"attn_implementation": "eager", "activation_checkpointing": True}),
    "gpt_neox": (NEOX, {"attn_implementation": "eager"}),
    "gemma2, checkpointed": (GEMMA, {"attn_implementation": "eager", "activation_checkpointing": True}),
    "mixtral": (MIXTRAL, {"attn_implementation": "eager"}),
}
BATCH, LENGTH = 2, 16


def counted_by_torch(config: dict[str, Any], keys: dict[str, Any]) -> int:
    """Operations of one real forward and backward pass on the CPU."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    loaded = transformers.AutoConfig.for_model(
        config["model_type"], **options, attn_implementation=keys.get("attn_implementation", "sdpa")
    )
    loaded._experts_implementation = "eager"  # the counter does not know grouped products
    model = transformers.AutoModelForCausalLM.from_config(loaded)
    if keys.get("method") == "lora":
        import peft

        targets = keys["target_modules"]
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=keys["lora_r"], target_modules=targets, task_type="CAUSAL_LM")
        )
    if keys.get("trainable"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(pattern in name for pattern in keys["trainable"])
    if mode := keys.get("activation_checkpointing"):
        model.activation_checkpointing_enable({"use_reentrant": mode == "reentrant"})
        model.enable_input_require_grads()
    model.train()
    ids = torch.randint(0, 96, (BATCH, LENGTH))
    fused = {
        aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=fused)
    with counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return int(counter.get_total_flops())


def _forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def counted_here(config: dict[str, Any], keys: dict[str, Any]) -> FlopCount:
    resolved = resolve(Recipe(model=config, dtype="float32", micro_batch_size=BATCH, sequence_length=LENGTH, **keys))
    model = flop_model(resolved, prepare(resolved))
    assert model is not None
    return model.count(BATCH, LENGTH)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks so
@pytest.mark.parametrize("name", CASES)
def test_every_product_is_counted(name: str) -> None:
    config, keys = CASES[name]
    assert counted_here(config, keys).total == counted_by_torch(config, keys)


@pytest.mark.parametrize("method", ["dora", "vera", "loha", "oft"])
def test_a_method_with_products_of_its_own_has_no_count(method: str) -> None:
    resolved = resolve(Recipe(model=LLAMA, method=method))
    assert flop_model(resolved, prepare(resolved)) is None


def test_dequantization_counts_every_element_once_a_pass() -> None:
    resolved = resolve(Recipe(model=LLAMA, method="qlora", sequence_length=LENGTH, activation_checkpointing=False))
    model = flop_model(resolved, prepare(resolved))
    assert model is not None
    per_layer = 4 * 32 * 32 + 3 * 32 * 80
    assert model.count(BATCH, LENGTH).dequantize == 2 * 3 * per_layer
    again = flop_model(*_checkpointed())
    assert again is not None
    assert again.count(BATCH, LENGTH).dequantize == 3 * 3 * per_layer


def _checkpointed() -> tuple[Any, Any]:
    resolved = resolve(Recipe(model=LLAMA, method="qlora", sequence_length=LENGTH))
    return resolved, prepare(resolved)
