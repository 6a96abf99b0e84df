"""What the coverage table tries: one axis after another, everything else as in a plain LoRA run of a small Llama."""

from __future__ import annotations

from typing import Any

_DECODER: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 256,
}  # fmt: skip
_GPT = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 1000}
_T5 = {
    "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4, "vocab_size": 1000,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_MLA = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 128, "kv_lora_rank": 64, "q_lora_rank": 64, "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32, "v_head_dim": 32, "first_k_dense_replace": 1,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}

LLAMA: dict[str, Any] = {**_DECODER, "model_type": "llama", "tie_word_embeddings": False}

# model_type -> (configuration beyond the common one, task, attention implementation).
FAMILIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({}, "causal-lm", "sdpa"),
    "mistral": ({"sliding_window": 64}, "causal-lm", "sdpa"),
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, "causal-lm", "sdpa"),
    "qwen2": ({}, "causal-lm", "sdpa"),
    "qwen2_moe": ({**_EXPERTS, "shared_expert_intermediate_size": 256}, "causal-lm", "sdpa"),
    "qwen3": ({"head_dim": 64}, "causal-lm", "sdpa"),
    "qwen3_moe": ({**_EXPERTS, "head_dim": 64}, "causal-lm", "sdpa"),
    "gemma": ({"head_dim": 64}, "causal-lm", "sdpa"),
    "gemma2": ({"head_dim": 64}, "causal-lm", "eager"),
    "gemma3_text": ({"head_dim": 64}, "causal-lm", "sdpa"),
    "phi": ({}, "causal-lm", "sdpa"),
    "phi3": ({"pad_token_id": 0}, "causal-lm", "sdpa"),
    "cohere": ({}, "causal-lm", "sdpa"),
    "olmo2": ({}, "causal-lm", "sdpa"),
    "granite": ({}, "causal-lm", "sdpa"),
    "starcoder2": ({}, "causal-lm", "sdpa"),
    "stablelm": ({}, "causal-lm", "sdpa"),
    "falcon": ({"multi_query": True}, "causal-lm", "sdpa"),
    "gpt_neox": ({}, "causal-lm", "sdpa"),
    "gptj": ({**_GPT, "rotary_dim": 32}, "causal-lm", "eager"),
    "gpt_bigcode": (_GPT, "causal-lm", "sdpa"),
    "bloom": ({"n_layer": 2, "n_head": 4}, "causal-lm", "eager"),
    "opt": ({"ffn_dim": 512, "word_embed_proj_dim": 256}, "causal-lm", "sdpa"),
    "gpt2": (_GPT, "causal-lm", "sdpa"),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}, "causal-lm", "eager"),
    "deepseek_v2": (_MLA, "causal-lm", "sdpa"),
    "deepseek_v3": (_MLA, "causal-lm", "sdpa"),
    "glm4": ({"head_dim": 64, "pad_token_id": 0}, "causal-lm", "sdpa"),
    "smollm3": ({"pad_token_id": 0}, "causal-lm", "sdpa"),
    "llama4_text": (
        {"head_dim": 64, "num_local_experts": 4, "intermediate_size_mlp": 512, "pad_token_id": 0}, "causal-lm", "sdpa",
    ),
    "nemotron": ({}, "causal-lm", "sdpa"),
    "exaone4": ({"head_dim": 64}, "causal-lm", "sdpa"),
    "ernie4_5": ({}, "causal-lm", "sdpa"),
    "lfm2": ({}, "causal-lm", "sdpa"),
    "mamba": ({"state_size": 16}, "causal-lm", "eager"),
    "mamba2": ({"num_heads": 8, "head_dim": 64, "state_size": 16, "n_groups": 1}, "causal-lm", "eager"),
    "bert": ({}, "masked-lm", "sdpa"),
    "roberta": ({"pad_token_id": 1}, "masked-lm", "sdpa"),
    "distilbert": ({"dim": 256, "hidden_dim": 512, "n_layers": 2, "n_heads": 4}, "masked-lm", "sdpa"),
    "deberta-v2": ({"pad_token_id": 0}, "masked-lm", "eager"),
    "modernbert": (
        {"pad_token_id": 0, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 0, "eos_token_id": 0},
        "masked-lm", "sdpa",
    ),
    "albert": ({"embedding_size": 64}, "masked-lm", "sdpa"),
    "electra": ({"embedding_size": 64}, "masked-lm", "sdpa"),
    "xlm-roberta": ({"pad_token_id": 1}, "masked-lm", "sdpa"),
    "t5": (_T5, "seq2seq-lm", "sdpa"),
    "mt5": (_T5, "seq2seq-lm", "sdpa"),
    "umt5": (_T5, "seq2seq-lm", "sdpa"),
    "bart": (
        {
            "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 1,
        },
        "seq2seq-lm", "sdpa",
    ),
}  # fmt: skip


# Where LoRA on all linear layers is refused (PEFT on Mamba's out_proj) or breaks the model (Llama 4's router).
LORA_TARGETS: dict[str, Any] = {"mamba": ["in_proj"], "mamba2": ["in_proj"], "llama4_text": ["q_proj", "v_proj"]}


def family_config(model_type: str) -> dict[str, Any]:
    """The small configuration of a family."""
    return {**_DECODER, **FAMILIES[model_type][0], "model_type": model_type}


_QV = ["q_proj", "v_proj"]
# label -> adapter config.
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"peft_type": "LORA", "target_modules": _QV},
    "LoRA, all-linear, dropout": {"peft_type": "LORA", "target_modules": "all-linear", "lora_dropout": 0.1},
    "LoRA, rsLoRA": {"peft_type": "LORA", "target_modules": _QV, "use_rslora": True},
    "LoRA, DoRA": {"peft_type": "LORA", "target_modules": _QV, "use_dora": True},
    "LoRA, PiSSA": {"peft_type": "LORA", "target_modules": _QV, "init_lora_weights": "pissa"},
    "LoRA, OLoRA": {"peft_type": "LORA", "target_modules": _QV, "init_lora_weights": "olora"},
    "LoRA, embeddings and modules_to_save": {
        "peft_type": "LORA", "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"],
    },
    "LoRA, trainable tokens": {"peft_type": "LORA", "target_modules": _QV, "trainable_token_indices": [1, 2, 3]},
    "AdaLoRA": {
        "peft_type": "ADALORA", "target_modules": _QV, "total_step": 100, "target_r": 4, "init_r": 8, "tinit": 1, "tfinal": 2,
    },
    "AdaMSS": {"peft_type": "ADAMSS", "target_modules": _QV},
    "Adaption prompt": {"peft_type": "ADAPTION_PROMPT", "adapter_len": 8, "adapter_layers": 2},
    "BEFT": {"peft_type": "BEFT"},
    "BOFT": {"peft_type": "BOFT", "target_modules": _QV, "boft_block_size": 4},
    "C3A": {"peft_type": "C3A", "target_modules": _QV, "block_size": 64},
    "Cartridge": {"peft_type": "CARTRIDGE", "num_virtual_tokens": 8},
    "CPT": {"peft_type": "CPT", "cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "DEFT": {"peft_type": "DEFT", "target_modules": _QV},
    "DeLoRA": {"peft_type": "DELORA", "target_modules": _QV},
    "FourierFT": {"peft_type": "FOURIERFT", "target_modules": _QV, "n_frequency": 100},
    "FRoD": {"peft_type": "FROD", "target_modules": _QV},
    "GLoRA": {"peft_type": "GLORA", "target_modules": _QV},
    "GraLoRA": {"peft_type": "GRALORA", "target_modules": _QV},
    "HiRA": {"peft_type": "HIRA", "target_modules": _QV},
    "HRA": {"peft_type": "HRA", "target_modules": _QV},
    "IA3": {
        "peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"],
    },
    "Lily": {"peft_type": "LILY", "target_modules": _QV},
    "LN tuning": {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "LoHa": {"peft_type": "LOHA", "target_modules": _QV},
    "LoKr": {"peft_type": "LOKR", "target_modules": _QV},
    "MiSS": {"peft_type": "MISS", "target_modules": _QV},
    "OFT": {"peft_type": "OFT", "target_modules": _QV, "oft_block_size": 32},
    "OSF": {"peft_type": "OSF", "target_modules": _QV},
    "Multitask prompt tuning": {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 8, "num_tasks": 2},
    "P-tuning": {"peft_type": "P_TUNING", "num_virtual_tokens": 8, "encoder_hidden_size": 64},
    "PEANuT": {"peft_type": "PEANUT", "target_modules": _QV},
    "Poly": {"peft_type": "POLY", "target_modules": _QV, "n_tasks": 2, "n_skills": 2},
    "Prefix tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8},
    "Prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
    "PSOFT": {"peft_type": "PSOFT", "target_modules": _QV},
    "PSOFT, low-rank SVD": {
        "peft_type": "PSOFT", "target_modules": _QV, "ab_svd_init": "psoft_init", "psoft_svd": "lowrank",
    },
    "PVeRA": {"peft_type": "PVERA", "target_modules": _QV},
    "RandLoRA": {"peft_type": "RANDLORA", "target_modules": _QV},
    "RoAd": {"peft_type": "ROAD", "target_modules": _QV},
    "Shadow": {"peft_type": "SHADOW"},
    "SHiRA": {"peft_type": "SHIRA", "target_modules": _QV, "r": 8},
    "Supertuning": {"peft_type": "SUPERTUNING", "target_modules": _QV},
    "TinyLoRA": {"peft_type": "TINYLORA", "target_modules": _QV},
    "Trainable tokens": {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2, 3], "target_modules": ["embed_tokens"]},
    "UniLoRA": {"peft_type": "UNILORA", "target_modules": _QV, "theta_d_length": 1000},
    "VB-LoRA": {"peft_type": "VBLORA", "target_modules": _QV, "num_vectors": 60, "vector_length": 64},
    "VeRA": {"peft_type": "VERA", "target_modules": _QV, "r": 64},
    "WaveFT": {"peft_type": "WAVEFT", "target_modules": _QV, "n_frequency": 100},
}  # fmt: skip

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_foreach", "adamw_torch_for_loop", "adafactor", "sgd", "adagrad",
    "rmsprop", "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
    "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "stable_adamw", "galore_adamw",
    "adamw_torch_8bit", "adamw_torch_4bit", "schedule_free_adamw", "apollo_adamw", "lomo", "grokadamw",
)  # fmt: skip

_ALL_LINEAR = {"peft_type": "LORA", "target_modules": "all-linear"}
# label -> options beyond the common ones.
STEPS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "float32 weights, bfloat16 autocast": {"dtype": "float32", "autocast": "bfloat16"},
    "float32 weights, float16 autocast, GradScaler, clipping": {
        "dtype": "float32", "autocast": "float16", "grad_scaler": True, "max_grad_norm": 1.0,
    },
    "NF4, double quantization, LoRA": {
        "load_in_4bit": True, "bnb_4bit_use_double_quant": True, "peft": _ALL_LINEAR, "autocast": "bfloat16",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "FP4, LoRA, checkpointing": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "peft": _ALL_LINEAR, "checkpointing": "reentrant",
    },
    "LLM.int8, no outliers, LoRA": {"load_in_8bit": True, "peft": _ALL_LINEAR, "dtype": "float16"},
    "LLM.int8, 7 outlier columns, LoRA": {
        "load_in_8bit": True, "peft": _ALL_LINEAR, "llm_int8_outlier_columns": 7, "autocast": "bfloat16",
    },
    "attention: eager": {"attn_implementation": "eager"},
    "attention: sdpa, sm80 (flash)": {"gpu_arch": "sm80"},
    "attention: sdpa, sm80, padded (efficient)": {"gpu_arch": "sm80", "padding": True},
    "attention: sdpa, sm90 (cuDNN)": {"gpu_arch": "sm90"},
    "attention: sdpa, sm75, float16, grouped heads (math)": {"gpu_arch": "sm75", "dtype": "float16"},
    "attention: sdpa, float32, grouped heads (math)": {"dtype": "float32"},
    "attention: flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "attention: flex_attention": {"attn_implementation": "flex_attention"},
    "checkpointing: reentrant": {"checkpointing": "reentrant"},
    "checkpointing: non-reentrant": {"checkpointing": "non-reentrant"},
    "checkpointing: reentrant, LoRA": {"checkpointing": "reentrant", "peft": _ALL_LINEAR},
    "gradient accumulation": {"gradient_accumulation_steps": 3},
    "Trainer's parameter groups": {"weight_decay_groups": True},
    "outputs kept, as float32": {"keep_outputs": True, "outputs_fp32": True, "autocast": "bfloat16", "dtype": "float32"},
    "sequence classification": {"task": "sequence-classification"},
    "token classification": {"task": "token-classification"},
    "question answering": {"task": "question-answering"},
}  # fmt: skip
