"""The walk against the trace of the real model: live bytes equal at every phase's peak and end.

The trace shares no code with the engine: it runs transformers, PEFT and the optimizer on fake CUDA tensors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan.compare import Comparison, compare
from memplan.estimate import Component
from memplan.recipe import Recipe
from memplan.units import MIB

# Odd sizes, so that rounding to blocks shows; grouped heads; three layers, so that folding has something to fold.
DECODER: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 5003, "max_position_embeddings": 4096, "dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {"model_type": "llama", **DECODER}
TIED = {**LLAMA, "tie_word_embeddings": True}
# More than 1536 rows: bitsandbytes always dequantizes there, whatever the GPU.
MANY_ROWS = {"micro_batch_size": 13, "sequence_length": 129}

DEBERTA_V3 = {
    "model_type": "deberta-v2", "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 3, "vocab_size": 5003,
    "num_attention_heads": 6, "pad_token_id": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 32, "position_biased_input": False,
    "type_vocab_size": 0, "max_relative_positions": -1, "dtype": "bfloat16",
}  # fmt: skip
FALCON = {
    "model_type": "falcon", "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 3, "ffn_hidden_size": 1000,
    "vocab_size": 5003, "pad_token_id": 0, "dtype": "bfloat16",
}  # fmt: skip
# Experts narrower than the dense layers; heads of their own size in latent attention.
MIXTRAL = {"model_type": "mixtral", **DECODER, "num_local_experts": 6, "num_experts_per_tok": 2}
QWEN3_MOE = {
    "model_type": "qwen3_moe", **DECODER, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 200,
    "norm_topk_prob": True,
}  # fmt: skip
QWEN2_MOE = {**QWEN3_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 328}
GPT_OSS = {
    **MIXTRAL,
    "model_type": "gpt_oss",
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", **{key: value for key, value in DECODER.items() if key != "head_dim"},
    "num_key_value_heads": 6, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 200,
    "kv_lora_rank": 128, "q_lora_rank": 160, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip
DEEPSEEK_V2 = {**DEEPSEEK_V3, "model_type": "deepseek_v2"}
PHI = {"model_type": "phi", **{key: value for key, value in DECODER.items() if key != "head_dim"}}
QUERIES = {"method": "lora", "target_modules": ["q_proj", "v_proj"]}

BERT: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 5003,
    "max_position_embeddings": 514, "dtype": "bfloat16",
}  # fmt: skip
DISTILBERT = {
    "model_type": "distilbert", "dim": 384, "n_layers": 3, "n_heads": 6, "hidden_dim": 1000, "vocab_size": 5003,
    "dtype": "bfloat16",
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 384, "d_kv": 64, "d_ff": 1000, "num_heads": 6, "vocab_size": 5003, "num_layers": 3,
    "dtype": "bfloat16",
}  # fmt: skip
T5_1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "model_type": "bart", "d_model": 384, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1000, "decoder_ffn_dim": 1000, "vocab_size": 5003,
    "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip
GPT2: dict[str, Any] = {
    "n_embd": 384, "n_layer": 3, "n_head": 6, "vocab_size": 5003, "n_positions": 512, "dtype": "bfloat16",
}  # fmt: skip
OPT = {
    "model_type": "opt", "hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6, "ffn_dim": 1000,
    "word_embed_proj_dim": 384, "vocab_size": 5003, "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip
BLOOM = {
    "model_type": "bloom", "hidden_size": 384, "n_layer": 3, "n_head": 6, "vocab_size": 5003, "dtype": "bfloat16",
}  # fmt: skip
CLASSIFY = {"task": "sequence-classification", "micro_batch_size": 5, "sequence_length": 37}
TAG = {**CLASSIFY, "task": "token-classification"}
SHORT = {"micro_batch_size": 5, "sequence_length": 21}
ONE = {"micro_batch_size": 1, "sequence_length": 64, "attn_implementation": "eager"}
ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}

RECIPES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, tied": {"model": TIED},
    "full, foreach": {"optim": "adamw_torch"},
    "full, sgd": {"optim": "sgd"},
    "full, 8-bit AdamW": {"optim": "adamw_bnb_8bit"},
    "full, Adafactor": {"optim": "adafactor", "max_grad_norm": 0.0},
    "XLM-RoBERTa, classified, LoRA, Adafactor": {
        "model": {"model_type": "xlm-roberta", **BERT}, "method": "lora", "optim": "adafactor", **CLASSIFY,
    },
    "full, paged": {"optim": "paged_adamw_8bit"},
    "full, no clipping": {"max_grad_norm": 0.0},
    "full, fp32": {"precision": "fp32"},
    "full, amp": {"precision": "amp"},
    "full, float16 on T4": {"dtype": "float16", "gpu": "t4", "precision": "pure"},
    "full, H100": {"gpu": "h100"},
    "full, padded": {"padding": True},
    "full, padded, H100": {"padding": True, "gpu": "h100"},
    "full, eager": {"attn_implementation": "eager"},
    "full, checkpointed": {"activation_checkpointing": True},
    "full, reentrant": {"activation_checkpointing": "reentrant"},
    "full, outputs kept": {"keep_outputs": True, "use_cache": True},
    "full, outputs kept through backward": {"keep_outputs": "backward", "use_cache": True},
    "LoRA, amp, accumulated, outputs kept through backward": {
        "method": "lora", "precision": "amp", "gradient_accumulation_steps": 3, "keep_outputs": "backward",
    },
    "full, eager, float16, padded": {
        "attn_implementation": "eager", "dtype": "float16", "precision": "pure", "padding": True,
    },
    "full, accumulated": {"gradient_accumulation_steps": 3},
    "full, tied, amp, accumulated, outputs kept": {
        "model": TIED, "precision": "amp", "gradient_accumulation_steps": 2, "keep_outputs": True, "padding": True,
    },
    "LoRA, checkpointed, outputs kept": {"method": "lora", "activation_checkpointing": True, "keep_outputs": True},
    "LoRA, reentrant, outputs kept, accumulated": {
        "method": "lora", "activation_checkpointing": "reentrant", "keep_outputs": True, "gradient_accumulation_steps": 2,
    },
    "norms trained": {"trainable": ("*norm*",)},
    "BitFit": {"model": {"model_type": "qwen2", **DECODER}, "method": "bitfit"},
    "LoRA, accumulated, checkpointed": {
        "method": "lora", "gradient_accumulation_steps": 4, "activation_checkpointing": True, "optim": "adamw_torch",
    },
    "LoRA": {"method": "lora", "lora_r": 7},
    "LoRA, all linear, dropout": {"method": "lora", "target_modules": "all-linear", "lora_dropout": 0.1},
    "LoRA, checkpointed": {"method": "lora", "target_modules": "all-linear", "activation_checkpointing": True},
    "LoRA, amp, reentrant, eager": {
        "method": "lora", "precision": "amp", "activation_checkpointing": "reentrant", "attn_implementation": "eager",
    },
    "LoRA on some layers": {"method": "lora", "peft": {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]}},
    "QLoRA": {"method": "qlora", **MANY_ROWS},
    "QLoRA, no checkpointing, no autocast": {
        "method": "qlora", "activation_checkpointing": False, "precision": "pure", **MANY_ROWS,
    },
    "QLoRA, single quantization": {
        "method": "qlora", "bnb_4bit_use_double_quant": False, "activation_checkpointing": True, **MANY_ROWS,
    },
    "mistral": {"model": {"model_type": "mistral", **DECODER}},
    "qwen2, LoRA": {"model": {"model_type": "qwen2", **DECODER}, "method": "lora"},
    "qwen3": {"model": {"model_type": "qwen3", **DECODER}, "activation_checkpointing": True},
    "granite, amp": {"model": {"model_type": "granite", **DECODER}, "precision": "amp"},
    "stablelm, padded": {"model": {"model_type": "stablelm", **DECODER}, "padding": True},
    "starcoder2, LoRA, amp": {
        "model": {"model_type": "starcoder2", **DECODER}, "method": "lora", "target_modules": "all-linear", "precision": "amp",
    },
    "gemma, LoRA, checkpointed": {
        "model": {"model_type": "gemma", **DECODER}, "method": "lora", "activation_checkpointing": True,
    },
    "gemma2": {"model": {"model_type": "gemma2", **DECODER}, "method": "lora", "target_modules": "all-linear"},
    "gemma3, amp": {"model": {"model_type": "gemma3_text", **DECODER}, "precision": "amp", "padding": True},
    "phi3, QLoRA": {"model": {"model_type": "phi3", **DECODER, "vocab_size": 32064}, "method": "qlora", **MANY_ROWS},
    "smollm3, fp32": {"model": {"model_type": "smollm3", **DECODER, "vocab_size": 128256}, "precision": "fp32"},
    "LoRA, modules_to_save, biases": {
        "method": "qlora", "peft": {"modules_to_save": ["lm_head"], "bias": "lora_only", "lora_bias": True}, **MANY_ROWS,
    },
    "cohere": {"model": {"model_type": "cohere", **DECODER}},
    "flash_attention_2, checkpointed": {"attn_implementation": "flash_attention_2", "activation_checkpointing": True},
    "flash_attention_2, padded, LoRA, checkpointed": {
        "attn_implementation": "flash_attention_2", "padding": True, "method": "lora", "activation_checkpointing": True,
    },
    "flash_attention_2, packed, amp": {"attn_implementation": "flash_attention_2", "packing": True, "precision": "amp"},
    "QLoRA, flash_attention_2": {"attn_implementation": "flash_attention_2", "method": "qlora", **MANY_ROWS},
    "gemma2, flash_attention_2, amp on H100": {
        "model": {"model_type": "gemma2", **DECODER}, "attn_implementation": "flash_attention_2", "precision": "amp",
        "gpu": "h100",
    },
    "olmo": {"model": {"model_type": "olmo", **DECODER}, "attn_implementation": "eager"},
    "GPT-2, checkpointed": {"model": {"model_type": "gpt2", **GPT2}, "activation_checkpointing": True},
    "GPT-2, amp, eager": {"model": {"model_type": "gpt2", **GPT2}, "precision": "amp", "attn_implementation": "eager"},
    "GPT-BigCode, padded": {"model": {"model_type": "gpt_bigcode", **GPT2}, "padding": True},
    "GPT-BigCode, fp32, LoRA": {"model": {"model_type": "gpt_bigcode", **GPT2}, "precision": "fp32", "method": "lora"},
    "GPT-NeoX on H100": {"model": {"model_type": "gpt_neox", **BERT}, "gpu": "h100"},
    "GPT-NeoX, LoRA, reentrant": {
        "model": {"model_type": "gpt_neox", **BERT}, "method": "lora", "activation_checkpointing": "reentrant",
    },
    "GPT-J, amp": {
        "model": {"model_type": "gptj", **GPT2, "rotary_dim": 32}, "precision": "amp", "attn_implementation": "eager",
    },
    "OPT, padded, amp": {"model": OPT, "precision": "amp", "padding": True},
    "OPT, LoRA on all linears, checkpointed": {
        "model": OPT, "method": "lora", "target_modules": "all-linear", "activation_checkpointing": True,
    },
    "BLOOM, fp32, accumulated": {
        "model": BLOOM, "precision": "fp32", "gradient_accumulation_steps": 2, "attn_implementation": "eager",
    },
    "one row": {"micro_batch_size": 1},
    "float16 autocast on T4, accumulated": {
        "precision": "amp", "autocast_dtype": "float16", "gpu": "t4", "gradient_accumulation_steps": 3,
    },
    "float16 autocast, foreach, no clipping": {
        "precision": "amp", "autocast_dtype": "float16", "optim": "adamw_torch", "max_grad_norm": 0.0, "keep_outputs": True,
    },
    "gemma2, LoRA, checkpointed": {
        "model": {"model_type": "gemma2", **DECODER, "sliding_window": 20}, "method": "lora", "activation_checkpointing": True,
    },
    "gemma3, cache kept": {
        "model": {"model_type": "gemma3_text", **DECODER, "sliding_window": 20}, "use_cache": True, "keep_outputs": True,
    },
    "olmo2, reentrant, amp": {
        "model": {"model_type": "olmo2", **DECODER}, "precision": "amp", "activation_checkpointing": "reentrant",
    },
    "olmo2, QLoRA, whose first layer takes the embeddings as they are": {
        "model": {"model_type": "olmo2", **DECODER}, "method": "qlora", **MANY_ROWS,
    },
    "phi, checkpointed": {"model": PHI, "activation_checkpointing": True},
    "phi, all linear, amp": {"model": PHI, "method": "lora", "target_modules": "all-linear", "precision": "amp"},
    "phi, H100": {"model": {**PHI, "num_key_value_heads": 6}, "gpu": "h100"},
    "mixtral": {"model": MIXTRAL},
    "mixtral, fp32, accumulated": {"model": MIXTRAL, "precision": "fp32", "gradient_accumulation_steps": 2},
    "mixtral, QLoRA on attention": {"model": MIXTRAL, **QUERIES, "method": "qlora", **MANY_ROWS},
    "qwen2_moe, amp, checkpointed": {"model": QWEN2_MOE, "precision": "amp", "activation_checkpointing": True},
    "qwen3_moe, padded, foreach": {"model": QWEN3_MOE, "padding": True, "optim": "adamw_torch"},
    "qwen3_moe, LoRA on attention, eager": {"model": QWEN3_MOE, **QUERIES, "attn_implementation": "eager"},
    "qwen2_moe, eager, amp, with a mask that no layer takes": {
        "model": QWEN2_MOE, "attn_implementation": "eager", "precision": "amp", "method": "lora",
        "target_modules": ["q_proj"],
    },
    "qwen3_moe on T4, checkpointed, outputs kept": {
        "model": QWEN3_MOE, "gpu": "t4", "dtype": "float16", "precision": "pure", "activation_checkpointing": True,
        "keep_outputs": True,
    },
    "mixtral on T4, reentrant, LoRA, outputs kept": {
        "model": MIXTRAL, **QUERIES, "gpu": "t4", "dtype": "float16", "precision": "pure", "keep_outputs": True,
        "activation_checkpointing": "reentrant",
    },
    "deepseek_v3, amp, eager": {"model": DEEPSEEK_V3, "precision": "amp", "attn_implementation": "eager"},
    "deepseek_v2, reentrant": {"model": DEEPSEEK_V2, "activation_checkpointing": "reentrant"},
    "deepseek_v3, amp": {"model": DEEPSEEK_V3, "precision": "amp"},
    "deepseek_v3, LoRA on attention, checkpointed": {
        "model": DEEPSEEK_V3, "method": "lora", "target_modules": ["q_b_proj", "kv_b_proj"], "activation_checkpointing": True,
    },
    "gpt-oss, cache kept": {"model": GPT_OSS, "use_cache": True, "keep_outputs": True},
    "gpt-oss, all linear, checkpointed": {
        "model": GPT_OSS, "method": "lora", "target_modules": "all-linear", "activation_checkpointing": True,
    },
    "Mixtral, classified": {"model": MIXTRAL, **CLASSIFY},
    "Phi, classified, checkpointed": {"model": PHI, "activation_checkpointing": True, **CLASSIFY},
    "BERT": {"model": {"model_type": "bert", **BERT}},
    "BERT, classified, amp, padded": {
        "model": {"model_type": "bert", **BERT}, "precision": "amp", "padding": True, **CLASSIFY,
    },
    "BERT, tagged, LoRA in eager attention": {
        "model": {"model_type": "bert", **BERT}, "attn_implementation": "eager", "method": "lora", **CLASSIFY,
    },
    "BERT, tagged, accumulated": {"model": {"model_type": "bert", **BERT}, "gradient_accumulation_steps": 2, **TAG},
    "RoBERTa, classified, checkpointed in eager attention": {
        "model": {"model_type": "roberta", **BERT}, "attn_implementation": "eager", "activation_checkpointing": True,
        **CLASSIFY,
    },
    "XLM-RoBERTa, fp32": {"model": {"model_type": "xlm-roberta", **BERT}, "precision": "fp32"},
    "DistilBERT, amp, outputs kept": {"model": DISTILBERT, "precision": "amp", "keep_outputs": True},
    "DistilBERT, classified, reentrant": {"model": DISTILBERT, "activation_checkpointing": "reentrant", **CLASSIFY},
    "ModernBERT, padded": {"model": {"model_type": "modernbert", **BERT}, "padding": True},
    "GPT-2, eager, reentrant, outputs kept": {
        "model": {"model_type": "gpt2", **GPT2}, "attn_implementation": "eager", "activation_checkpointing": "reentrant",
        "keep_outputs": True,
    },
    "BERT, padded, reentrant, outputs kept": {
        "model": {"model_type": "bert", **BERT}, "padding": True, "activation_checkpointing": "reentrant",
        "keep_outputs": True,
    },
    "BART, cache asked for": {"model": BART, "use_cache": True, "keep_outputs": True},
    "Phi-3, DoRA": {
        "model": {"model_type": "phi3", **DECODER, "pad_token_id": 0}, "method": "dora", "target_modules": "all-linear",
    },
    "Qwen2, QLoRA, whose first forward rewrites its biases": {
        "model": {"model_type": "qwen2", **DECODER}, "method": "qlora", **MANY_ROWS,
    },
    "Llama, tagged, LoRA, whose head is copied last": {"method": "lora", **TAG},
    "Llama, tagged, cache asked for": {"use_cache": True, "keep_outputs": True, **TAG},
    "Llama, classified": {**CLASSIFY},
    "Llama, classified, LoRA, checkpointed": {"method": "lora", "activation_checkpointing": True, **CLASSIFY},
    "Qwen3, tagged, amp": {"model": {"model_type": "qwen3", **DECODER}, "precision": "amp", **TAG},
    "VeRA, classified, reentrant": {
        "method": "vera", "activation_checkpointing": "reentrant", **ATTENTION, **CLASSIFY, **SHORT,
    },
    "DoRA, tagged, checkpointed": {"method": "dora", "activation_checkpointing": True, **ATTENTION, **TAG, **SHORT},
    "StableLM, DoRA, classified, checkpointed, padded, eager": {
        "model": {"model_type": "stablelm", **DECODER}, "method": "dora", **ATTENTION, "activation_checkpointing": True,
        "padding": True, "attn_implementation": "eager", "task": "sequence-classification",
    },
    "StarCoder2, OFT, windowed, amp, reentrant": {
        "model": {"model_type": "starcoder2", **DECODER, "sliding_window": 20}, "method": "oft", **ATTENTION, "gpu": "t4",
        "precision": "amp", "activation_checkpointing": "reentrant", "task": "sequence-classification",
    },
    "GPT-BigCode, eager, one sequence": {"model": {"model_type": "gpt_bigcode", **GPT2}, **ONE},
    "Qwen3, DoRA, reentrant, eager, one sequence": {
        "model": {"model_type": "qwen3", **DECODER}, "method": "dora", **ATTENTION, **ONE,
        "activation_checkpointing": "reentrant",
    },
    "BLOOM, OFT, padded, reentrant, one sequence": {
        "model": BLOOM, "method": "oft", "target_modules": ["query_key_value", "dense"], "precision": "fp32",
        "padding": True, "activation_checkpointing": "reentrant", **ONE,
    },
    "BLOOM, LoHa, checkpointed, one sequence": {
        "model": BLOOM, "method": "loha", "target_modules": ["query_key_value", "dense"], "precision": "fp32",
        "activation_checkpointing": True, **ONE,
    },
    "GPT-J, BEFT, reentrant": {
        "model": {"model_type": "gptj", **GPT2, "rotary_dim": 32}, "method": "beft", "activation_checkpointing": "reentrant",
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"], "micro_batch_size": 3, "sequence_length": 37,
    },
    "LoRA, classified, padded, checkpointed, on T4 without a fused kernel": {
        "method": "lora", "gpu": "t4", "padding": True, "activation_checkpointing": True, **CLASSIFY, "sequence_length": 129,
    },
    "T5, padded": {"model": T5, "padding": True},
    "T5, amp, checkpointed": {"model": T5, "precision": "amp", "activation_checkpointing": True},
    "T5 1.1, LoRA": {"model": T5_1_1, "method": "lora"},
    "T5 1.1, amp, eager, two lengths": {
        "model": T5_1_1, "precision": "amp", "attn_implementation": "eager", "target_length": 41,
    },
    "BART": {"model": BART},
    "BART, LoRA on all linears, checkpointed": {
        "model": BART, "method": "lora", "target_modules": "all-linear", "activation_checkpointing": True,
    },
    "T5, padded, reentrant, two lengths": {
        "model": T5, "padding": True, "activation_checkpointing": "reentrant", "target_length": 41, "keep_outputs": True,
    },
    "BART, QLoRA, reentrant": {"model": BART, "method": "qlora", "activation_checkpointing": "reentrant", **MANY_ROWS},
    "DeBERTa v3, tagged, amp, padded": {
        "model": DEBERTA_V3, "precision": "amp", "dtype": "float32", "padding": True, **TAG,
    },
    "DeBERTa v3, LoRA, checkpointed, outputs kept": {
        "model": DEBERTA_V3, "method": "lora", "activation_checkpointing": True, "keep_outputs": True,
    },
    "DeBERTa v3, fp32, checkpointed, tagged": {
        "model": DEBERTA_V3, "dtype": "float32", "precision": "fp32", "activation_checkpointing": True, **TAG,
    },
    "Falcon, one key head for all, amp, checkpointed": {
        "model": FALCON, "precision": "amp", "dtype": "float32", "activation_checkpointing": True,
    },
    "Falcon, one key head for all, on H100, cache kept": {
        "model": FALCON, "gpu": "h100", "use_cache": True, "keep_outputs": True,
    },
    "Falcon, one after the other, classified, LoRA, reentrant, padded": {
        "model": {**FALCON, "multi_query": False, "parallel_attn": False, "attention_dropout": 0.1}, "method": "lora",
        "padding": True, "activation_checkpointing": "reentrant", **CLASSIFY,
    },
    "Falcon, grouped heads, eager, accumulated": {
        "model": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, "attn_implementation": "eager",
        "gradient_accumulation_steps": 2,
    },
    "Falcon, QLoRA, whose linear layers nobody quantizes": {"model": FALCON, "method": "qlora", **SHORT},
    "BERT, BOFT, amp, reentrant, whose projections share the copy of their input": {
        "model": {"model_type": "bert", **BERT}, "method": "boft", "target_modules": ["query", "key", "value"],
        "precision": "amp", "activation_checkpointing": "reentrant", "micro_batch_size": 2, "sequence_length": 37,
    },
    "BERT, AdaLoRA, amp, without a wrapper that adds to the loss": {
        "model": {"model_type": "bert", **BERT}, "method": "adalora", "peft": {"total_step": 100}, "precision": "amp",
        "micro_batch_size": 2, "sequence_length": 37,
    },
    "mBART, amp, outputs kept": {"model": {**BART, "model_type": "mbart"}, "precision": "amp", "keep_outputs": True},
}  # fmt: skip


@cache
def compared() -> dict[str, Comparison]:
    common = {"model": LLAMA, "micro_batch_size": 2, "sequence_length": 129}
    recipes = [Recipe(**{**common, **keys}) for keys in RECIPES.values()]
    return dict(zip(RECIPES, compare(recipes), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_is_equal_to_the_byte(name: str) -> None:
    comparison = compared()[name]
    assert not comparison.refusal
    assert comparison.parameters_equal
    assert len(comparison.phases) == 7
    assert [phase for phase in comparison.phases if not phase.is_equal] == []


@pytest.mark.parametrize("name", RECIPES)
def test_each_layer_saves_the_same_tensors(name: str) -> None:
    comparison = compared()[name]
    # A checkpointed layer saves what it hands to the next; of the last one nothing may be left, nor of one that is not trained.
    assert any(entry.layer and entry.trace for entry in comparison.layers)
    assert [layer.difference for layer in comparison.layers if not layer.is_equal] == []


def test_the_worked_case_of_llama_3_2_3b() -> None:
    """LoRA r=32 on q and v, batch 4, sequence 768: the phases that a trace of the real model gave, in MiB.

    That trace counted one cuBLAS workspace (8.1 MiB); the autograd thread's second one is counted here from its first use.
    """
    import memplan

    est = memplan.estimate(
        model="meta-llama/Llama-3.2-3B",
        method="lora",
        lora_r=32,
        target_modules=["q_proj", "v_proj"],
        micro_batch_size=4,
        sequence_length=768,
        optim="adamw_torch",
        max_grad_norm=0.0,
    )
    second_workspace = 8_519_680 / MIB
    points = {(point.step, point.phase.value): point for point in est.timeline}
    assert points[2, "forward"].peak_bytes / MIB - second_workspace == pytest.approx(19454.5, abs=0.1)
    assert points[2, "forward"].end_bytes / MIB - second_workspace == pytest.approx(17182.0, abs=0.1)
    assert points[2, "backward"].peak_bytes / MIB - second_workspace == pytest.approx(20187.9, abs=0.1)
    assert points[2, "optimizer_step"].peak_bytes / MIB - second_workspace == pytest.approx(6311.0, abs=0.1)
    assert points[2, "optimizer_step"].end_bytes / MIB - second_workspace == pytest.approx(6241.0, abs=0.1)
    assert (est.peak.step, est.peak.phase.value, est.peak.at) == (2, "backward", "_log_softmax_backward_data")
    assert est.component_bytes(Component.WEIGHTS) / MIB == pytest.approx(6127.8, abs=0.1)
    assert est.component_bytes(Component.ADAPTERS) / MIB == pytest.approx(35.0, abs=0.1)
    assert est.component_bytes(Component.OPTIMIZER_STATES) / MIB == pytest.approx(70.0, abs=0.1)
    saved_and_loss = est.component_bytes(Component.ACTIVATIONS) + est.component_bytes(Component.LOGITS_AND_LOSS)
    assert saved_and_loss / MIB == pytest.approx(10940.9 + 3006.0, abs=0.2)
