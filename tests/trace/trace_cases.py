"""Tiny models of every family that the tests trace: two layers, odd enough sizes that no two tensors are alike."""

from __future__ import annotations

from typing import Any

DECODER = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
LLAMA: dict[str, Any] = {**DECODER, "model_type": "llama", "tie_word_embeddings": False}
GPT2 = {
    "model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1000, "n_positions": 256,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 1000, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 256, "d_kv": 64, "d_ff": 688, "num_layers": 2, "num_heads": 4, "vocab_size": 1000,
    "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
MIXTRAL = {
    **DECODER,
    "model_type": "mixtral",
    "intermediate_size": 512,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}

# name -> (config, task, LoRA target modules)
FAMILIES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "llama": (LLAMA, "causal-lm", ["q_proj", "v_proj"]),
    "qwen3": ({**DECODER, "model_type": "qwen3", "head_dim": 64}, "causal-lm", ["q_proj", "v_proj"]),
    "gemma": ({**DECODER, "model_type": "gemma", "head_dim": 64}, "causal-lm", ["q_proj", "v_proj"]),
    "gemma3": ({**DECODER, "model_type": "gemma3_text", "head_dim": 64}, "causal-lm", ["q_proj", "v_proj"]),
    "gpt2": (GPT2, "causal-lm", ["c_attn", "c_proj"]),
    "bert": (BERT, "masked-lm", ["query", "value"]),
    "t5": (T5, "seq2seq-lm", ["q", "v"]),
    "mixtral": (MIXTRAL, "causal-lm", ["q_proj", "v_proj"]),
}


def lora(target_modules: Any, **options: Any) -> dict[str, Any]:
    """An adapter config for LoRA with rank 8."""
    return {"peft_type": "LORA", "r": 8, "target_modules": target_modules, **options}
