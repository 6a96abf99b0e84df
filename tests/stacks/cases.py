"""Small runs whose loss, batch or layers are a library's own, and the traces of them that were made with that library.

`python -m tests.stacks.cases [LIBRARY...]` traces them again and writes the files beside this one; it needs the library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memplan.agreement.cases import attention_linears, small_config
from memplan.errors import MemplanError
from memplan.families import WITHOUT_SDPA
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.estimate import spec_of
from memplan.trace.runner import run_many
from memplan.trace.spec import FLASH_ATTN_VERSION
from memplan.unsupported.attention import FLASH_ATTENTION_2
from memplan.unsupported.packing import PACKED

# Odd sizes, so that rounding to blocks shows; grouped heads; four layers, so that folding has something to fold.
DECODER: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 5003, "max_position_embeddings": 4096, "dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {"model_type": "llama", **DECODER}
TIED = {**LLAMA, "tie_word_embeddings": True}
# Attention is where its peak is.
NARROW = {
    "intermediate_size": 64, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "hidden_dim": 64,
    "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 211,
}  # fmt: skip
THIN = {**LLAMA, "intermediate_size": 64, "vocab_size": 211}
# Families whose layers do not go under reentrant checkpointing.
UNFOLDED = {"bart"}


def thin(model_type: str) -> dict[str, Any]:
    """A small model of a type with a narrow MLP and few words."""
    config = small_config(model_type)
    return {**config, **{key: size for key, size in NARROW.items() if key in config}, "dtype": "bfloat16"}


ADAPTED = {"method": "lora", "target_modules": "all-linear"}
AMP = {"precision": "amp", "dtype": "float32"}
# More than 1536 rows: bitsandbytes always dequantizes there, whatever the GPU.
# A batch so small that the largest parameter's update can be the highest moment.
TINY = {"micro_batch_size": 1, "sequence_length": 8}
QLORA = {"method": "qlora", "micro_batch_size": 13, "sequence_length": 129}

METHODS: dict[str, dict[str, Any]] = {"full": {}, "LoRA": ADAPTED, "QLoRA": QLORA}
PRECISIONS: dict[str, dict[str, Any]] = {"bf16": {"precision": "pure"}, "amp": {"precision": "amp"}}
CHECKPOINTING: dict[str, Any] = {"kept": False, "checkpointed": True, "reentrant": "reentrant"}
# How the runs of every library differ.
COURSES: dict[str, dict[str, Any]] = {
    f"{method}, {precision}, {mode}": {
        **METHODS[method], **PRECISIONS[precision], "activation_checkpointing": CHECKPOINTING[mode],
        **({"dtype": "float32"} if precision == "amp" and method != "QLoRA" else {}),
    }
    for method in METHODS
    for precision in PRECISIONS
    for mode in CHECKPOINTING
} | {
    "full, fp32": {"precision": "fp32", "dtype": "float32"},
    "full, float16 autocast on T4": {**AMP, "autocast_dtype": "float16", "gpu": "t4"},
    "full, float16 on T4": {"dtype": "float16", "precision": "pure", "gpu": "t4"},
    "full, H100": {"gpu": "h100"},
    "full, accumulated": {"gradient_accumulation_steps": 3},
    "full, outputs kept": {"keep_outputs": True},
    "tied, amp, accumulated": {"model": TIED, **AMP, "gradient_accumulation_steps": 2},
    "one row": {"micro_batch_size": 1, "sequence_length": 64},
    "one row, LoRA, amp": {"micro_batch_size": 1, "sequence_length": 64, **ADAPTED, **AMP},
    "one position": {"micro_batch_size": 3, "sequence_length": 1},
    "nine positions": {"sequence_length": 9},
    "long": {"micro_batch_size": 2, "sequence_length": 700},
    "prompt tuning": {"method": "prompt_tuning", "num_virtual_tokens": 5},
}  # fmt: skip


def _of_types(names: Iterable[str], lora: str | tuple[str, ...] = ("q_proj", "o_proj")) -> dict[str, dict[str, Any]]:
    courses = {"full": {}, "amp": AMP, "LoRA, reentrant": {"method": "lora", "target_modules": lora,
               "activation_checkpointing": "reentrant"}}  # fmt: skip
    return {
        f"{name}, {text}": {"model": {"model_type": name, **DECODER}, **keys}
        for name in names
        for text, keys in courses.items()
    }


PACKED_TYPES = (
    "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "mixtral",
    "qwen3_moe", "cohere", "starcoder2", "stablelm", "gpt2", "gpt_neox", "phi", "gpt_oss",
)  # fmt: skip
PACKED_RUNS = (
    {name: keys for name, keys in COURSES.items() if "prompt" not in name and "one position" not in name}
    | {
        f"{name}, {attention}": {"model": {**small_config(name), "dtype": "bfloat16"}, "attn_implementation": attention}
        for name in PACKED_TYPES
        for attention in ("sdpa", "eager")
        if name not in WITHOUT_SDPA or attention == "eager"
    }
    | {
        f"llama, eager, {name}": {**COURSES[name], "attn_implementation": "eager"}
        for name in ("full, amp, kept", "LoRA, bf16, reentrant", "full, bf16, checkpointed")
    }
)

# The same step on whole, padded and packed batches.
FLASH_TYPES = tuple(sorted(FLASH_ATTENTION_2))
FLASH_COURSES = {name: keys for name, keys in COURSES.items() if "T4" not in name and "fp32" not in name} | {
    "full, float16 on RTX 4090": {"dtype": "float16", "precision": "pure", "gpu": "rtx-4090"},
    "full, float16 autocast on H100": {**AMP, "autocast_dtype": "float16", "gpu": "h100"},
    "QLoRA, not prepared, bf16": {
        **QLORA, "prepare_model_for_kbit_training": False, "precision": "pure", "activation_checkpointing": True,
    },
    "QLoRA on H100, bf16, kept": {**QLORA, "precision": "pure", "gpu": "h100", "activation_checkpointing": False},
    "DoRA": {**ADAPTED, "peft": {"use_dora": True}},
    "IA3": {"method": "ia3"},
    "heads of 160, H100": {
        "model": {**THIN, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 160}, "gpu": "h100",
    },
    "heads of 256": {"model": {**THIN, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}},
    "one head for each key": {"model": {**THIN, "num_key_value_heads": 6}, "activation_checkpointing": True},
    "a window": {"model": {**THIN, "model_type": "mistral", "sliding_window": 20}},
}  # fmt: skip
FLASH_RUNS: dict[str, dict[str, Any]] = {
    f"{batch}: {name}": {"model": THIN, **keys, **({batch: True} if batch != "whole" else {})}
    for batch in ("whole", "padding", "packing")
    for name, keys in FLASH_COURSES.items()
    if batch != "packing" or "prompt" not in name
} | {
    f"{batch}: {name}, {text}": {"model": thin(name), "micro_batch_size": 2, "sequence_length": 129, batch: True, **keys}
    for batch in ("padding", "packing")
    for name in FLASH_TYPES
    if batch != "packing" or name in PACKED
    for text, keys in {
        "kept": {}, "amp, checkpointed": {**AMP, "activation_checkpointing": True},
        "LoRA, reentrant": {
            "method": "lora", "target_modules": attention_linears(name), "activation_checkpointing": "reentrant",
        },
    }.items()
    if name not in UNFOLDED or "reentrant" not in text
} | {
    "padding: evaluated": {"model": THIN, "padding": True, "eval_strategy": "steps"},
    "padding: cache kept": {"model": THIN, "padding": True, "use_cache": True, "keep_outputs": True},
    "packing: texts of 9 tokens": {
        "model": THIN, "packing": True, "micro_batch_size": 3, "sequence_length": 700, "packed_text_tokens": 9,
    },
    "packing: two texts": {"model": THIN, "packing": True, "packed_text_tokens": 1000},
}  # fmt: skip

TRL_RUNS = {
    name: keys for name, keys in COURSES.items()
    if not name.startswith("QLoRA") and "outputs" not in name and "prompt" not in name and "position" not in name
} | {
    "nothing said": {},
    "QLoRA": QLORA,
    "QLoRA, 16-bit head": {**QLORA, "dtype": "bfloat16"},
    "QLoRA, kept": {**QLORA, "dtype": "bfloat16", "activation_checkpointing": False},
    "QLoRA, paged": {**QLORA, "activation_checkpointing": "reentrant", "optim": "paged_adamw_8bit"},
    "vocabulary of several tiles": {"model": {**LLAMA, "vocab_size": 70000}},
    "tokens of several tiles": {"micro_batch_size": 6, "sequence_length": 1501, **ADAPTED},
    "padded": {"padding": True},
    "eager": {"attn_implementation": "eager", **ADAPTED},
    "flash-attn": {"attn_implementation": "flash_attention_2"},
} | {
    f"packed, {attention}, {text}": {"model": THIN, "packing": True, "attn_implementation": attention, **keys}
    for attention in ("flash_attention_2", "sdpa", "eager")
    for text, keys in {
        "nothing said": {}, "bf16, kept": {"precision": "pure", "activation_checkpointing": False},
        "LoRA, reentrant": {**ADAPTED, "activation_checkpointing": "reentrant"}, "QLoRA": QLORA,
    }.items()
} | {
    "packed, flash_attention_2, H100, accumulated": {
        "model": THIN, "packing": True, "attn_implementation": "flash_attention_2", "gpu": "h100",
        "gradient_accumulation_steps": 3, "packed_text_tokens": 5,
    },
} | {
    f"packed, flash_attention_2, {name}": {
        "model": thin(name), "packing": True, "attn_implementation": "flash_attention_2", "activation_checkpointing": False,
    }
    for name in ("gemma2", "gemma3_text", "olmo2", "phi3", "qwen3", "starcoder2", "cohere", "granite")
} | _of_types((
    "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "cohere",
    "starcoder2", "stablelm",
), lora="all-linear")  # fmt: skip

OFFLOADED = {"activation_offloading": True}
TRL_RUNS |= {
    f"offloaded, {name}": {**OFFLOADED, **keys}
    for name, keys in {
        "nothing said": {},
        "long": {"micro_batch_size": 2, "sequence_length": 700},
        "nine layers": {"model": {**LLAMA, "num_hidden_layers": 9}},
        "fp32, accumulated": {"precision": "fp32", "gradient_accumulation_steps": 3},
        "bf16, padded": {"dtype": "bfloat16", "precision": "pure", "padding": True},
        "float16 autocast": {"autocast_dtype": "float16", "gpu": "t4"},
        "LoRA, bf16": {**ADAPTED, "dtype": "bfloat16", "precision": "pure", "lora_dropout": 0.1},
        "LoRA, accumulated": {**ADAPTED, "gradient_accumulation_steps": 2},
        "LoRA, eager": {**ADAPTED, "attn_implementation": "eager"},
        "QLoRA": QLORA,
        "DoRA": {**ADAPTED, "method": "dora", "precision": "fp32"},
        "gemma2": {"model": {"model_type": "gemma2", **DECODER}},
        "cohere": {"model": {"model_type": "cohere", **DECODER}},
        "stablelm, accumulated": {"model": {"model_type": "stablelm", **DECODER}, "gradient_accumulation_steps": 2},
        "olmo": {"model": {"model_type": "olmo", **DECODER}, "micro_batch_size": 8},
        "starcoder2, LoRA": {"model": {"model_type": "starcoder2", **DECODER}, **ADAPTED},
    }.items()
}
CHECKPOINT_RUNS = {
    name: keys for name, keys in COURSES.items() if keys.get("activation_checkpointing")
} | {
    f"{name}, {text}": {"model": {**small_config(name), "dtype": "bfloat16"}, **keys}
    for name in ("gemma2", "mixtral", "gpt_oss", "modernbert", "bloom", "opt", "gpt_neox", "deepseek_v3")
    for text, keys in {
        "checkpointed": {"activation_checkpointing": True, "padding": True, "gradient_accumulation_steps": 2},
        "reentrant": {"activation_checkpointing": "reentrant"},
    }.items()
} | {
    "generating": {"activation_checkpointing": True, "max_new_tokens": 4, "per_device_eval_batch_size": 2},
}  # fmt: skip

FUSED_RUNS = COURSES | _of_types(
    ("mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2", "mixtral")
)
LIGER_RUNS = (
    {name: keys for name, keys in COURSES.items() if "prompt" not in name}
    | {
        "padded": {"padding": True},
        "eager": {"attn_implementation": "eager", **ADAPTED},
        "packed": {"packing": True},
        "own loss": {"loss": "default"},
        "own loss, LoRA": {"loss": "default", **ADAPTED},
        "granite": {"model": {"model_type": "granite", **DECODER}, "loss": "default"},
    }
    | _of_types(("mistral", "qwen2", "qwen3", "smollm3"), lora="all-linear")
)

SCALED_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# Models that torchtune builds: with one rotary table or one a layer, in pairs or in halves, tied or not.
TORCHTUNE_MODELS: dict[str, dict[str, Any]] = {
    "llama 3": LLAMA,
    "llama 3.1": {**LLAMA, "rope_parameters": SCALED_ROPE},
    "llama 3.2": {**TIED, "rope_parameters": SCALED_ROPE},
    "mistral": {"model_type": "mistral", **DECODER},
    "qwen2": {"model_type": "qwen2", **DECODER},
    "tied qwen2": {**TIED, "model_type": "qwen2"},
    "gemma": {**TIED, "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "head_dim": 256},
    "gemma2": {**TIED, "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 16},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, **DECODER},
}
HEAD = {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")}
TORCHTUNE_RUNS: dict[str, dict[str, Any]] = (
    {"nothing said": {}}
    | {
        f"{method}, {precision}, {'checkpointed' if on else 'kept'}, {loss}": {
            **METHODS[method], "precision": precision, "activation_checkpointing": on, "loss": loss,
        }
        for method in ("full", "LoRA")
        for precision in ("pure", "fp32")
        for on in (False, True)
        for loss in ("chunked", "default")
    }
    | {
        f"{name}, {text}": {"model": model, **keys}
        for name, model in TORCHTUNE_MODELS.items()
        for text, keys in {
            "full": {"loss": "default"},
            "LoRA": {"method": "lora", "target_modules": ("q_proj", "v_proj"), "activation_checkpointing": True},
            "DoRA": {"method": "dora", "target_modules": "all-linear"},
        }.items()
    }
    | {
        f"head, {text}": {"method": "lora", **HEAD, **keys}
        for text, keys in {
            "LoRA": {},
            "own loss": {"loss": "default", "activation_checkpointing": True},
            "one row": {"micro_batch_size": 1},
            "dropout": {"lora_dropout": 0.1},
            "mistral, dropout": {"model": TORCHTUNE_MODELS["mistral"], "lora_dropout": 0.1},
            "DoRA": {"method": "dora", "activation_checkpointing": True},
        }.items()
    }
    | {
        "accumulated": {"gradient_accumulation_steps": 3},
        "LoRA, accumulated": {"gradient_accumulation_steps": 2, "activation_checkpointing": True, **ADAPTED},
        "clipped": {"max_grad_norm": 1.0},
        "one row, LoRA": {"micro_batch_size": 1, "sequence_length": 64, **ADAPTED},
        "one position": {"micro_batch_size": 3, "sequence_length": 1},
        "nine positions": {"sequence_length": 9},
        "long": {"micro_batch_size": 2, "sequence_length": 700},
        "many rows": {"micro_batch_size": 100, "sequence_length": 16},
        "padded": {"padding": True},
        "dropout": {"lora_dropout": 0.1, "activation_checkpointing": True, **ADAPTED},
        "DoRA, dropout, fp32": {"method": "dora", "target_modules": "all-linear", "lora_dropout": 0.1, "precision": "fp32"},
        "MLP and keys": {"method": "lora", "target_modules": ("k_proj", "gate_proj", "up_proj", "down_proj")},
        "heads for all": {"model": {**LLAMA, "num_key_value_heads": 6}, **ADAPTED},
        "one key head": {"model": {**LLAMA, "num_key_value_heads": 1}},
        "one key head, gemma2": {"model": {**TORCHTUNE_MODELS["gemma2"], "num_key_value_heads": 1}, **ADAPTED},
        "one row, gemma2": {"model": TORCHTUNE_MODELS["gemma2"], "micro_batch_size": 1, "sequence_length": 64},
        "one key head, fp32": {"model": {**TORCHTUNE_MODELS["qwen2"], "num_key_value_heads": 1}, "precision": "fp32"},
        "dropout in attention": {"model": {**LLAMA, "attention_dropout": 0.1}},
        "H100": {"gpu": "h100", **ADAPTED},
        "T4": {"gpu": "t4", "precision": "fp32"},
        "AdamW, foreach": {"optim": "adamw_torch"},
        "AdamW, 8 bits": {"optim": "adamw_8bit"},
        "LoRA, paged": {"optim": "paged_adamw_8bit", **ADAPTED},
        "SGD": {"optim": "sgd"},
    }
)  # fmt: skip
# Layers of every kind, as small models of their own: biases, tied embeddings, experts, an encoder, both.
LOMO_TYPES = ("bert", "gpt2", "t5", "bart", "gemma2", "phi", "gpt_neox", "qwen2", "mixtral", "deepseek_v2", "gpt_oss")
EXPERTS = LOMO_TYPES[-3:]
LOMO_RUNS = {
    f"{optim}: {name}": {**keys, "optim": optim}
    for optim in ("lomo", "adalomo")
    for name, keys in (
        {name: keys for name, keys in COURSES.items() if "float16 autocast" not in name}
        | {
            f"{name}, {text}": {"model": {**small_config(name), "vocab_size": 307}, **TINY, **keys}
            for name in LOMO_TYPES
            for text, keys in {
                "pure": {"dtype": "bfloat16", "precision": "pure"},
                "fp32, checkpointed": {"precision": "fp32", "activation_checkpointing": True},
                "LoRA, amp": {**ADAPTED, **AMP, **({"target_modules": ("o_proj",)} if name in EXPERTS else {})},
            }.items()
            # AdaLomo trains no stacked experts, and keeps states of frozen ones.
            if optim == "lomo" or "LoRA" in text or name not in EXPERTS
        }
    ).items()
}

UNSLOTH_METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "lora"}, "QLoRA": {"method": "qlora", "bnb_4bit_use_double_quant": True},
}  # fmt: skip
UNSLOTH_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "kept": {"activation_checkpointing": False}, "checkpointed": {"activation_checkpointing": True}, "offloaded": {},
}  # fmt: skip
LARGE_VOCABULARY = {"model": {**LLAMA, "vocab_size": 70000}}
# Texts of more than 2 MiB in all, from where on checkpoints are offloaded.
UNSLOTH_RUNS: dict[str, dict[str, Any]] = {
    f"{name}, {method}, {mode}": {
        "model": {**LLAMA, "model_type": name}, **UNSLOTH_METHODS[method], **UNSLOTH_CHECKPOINTING[mode],
    }
    for name in ("llama", "mistral", "qwen2", "qwen3")
    for method in UNSLOTH_METHODS
    for mode in UNSLOTH_CHECKPOINTING
} | {
    "nothing said": {"optim": None},
    "short": {"micro_batch_size": 5, "sequence_length": 37},
    "one text": {"micro_batch_size": 1, "sequence_length": 640},
    "inputs too small to offload": {"micro_batch_size": 2, "sequence_length": 600},
    "accumulated": {"gradient_accumulation_steps": 3},
    "accumulated, kept, QLoRA": {
        "gradient_accumulation_steps": 2, "activation_checkpointing": False, **UNSLOTH_METHODS["QLoRA"],
    },
    "large vocabulary": LARGE_VOCABULARY,
    "tiled vocabulary": {**LARGE_VOCABULARY, "sequence_length": 1100},
    "tiled vocabulary on a small card": {**LARGE_VOCABULARY, "gpu": "rtx-4090"},
    "row beyond the model's positions": {"micro_batch_size": 2, "sequence_length": 3000},
    "row beyond the model's positions, checkpointed": {
        "micro_batch_size": 2, "sequence_length": 3000, "activation_checkpointing": True,
        "model": {**LLAMA, "model_type": "mistral"},
    },
    "many positions": {"model": {**LLAMA, "max_position_embeddings": 131072}, "activation_checkpointing": False},
    "40960 positions": {"model": {**LLAMA, "model_type": "qwen3", "max_position_embeddings": 40960}},
    "tied": {"model": TIED},
    "rank 64, simple quantization": {"method": "qlora", "lora_r": 64, "bnb_4bit_use_double_quant": False},
    "heads as many": {"model": {**LLAMA, "num_key_value_heads": 6}},
    "one key head": {"model": {**LLAMA, "num_key_value_heads": 1, "head_dim": 128, "num_attention_heads": 3}},
    "two layers": {"model": {**LLAMA, "num_hidden_layers": 2}},
    "one layer": {"model": {**LLAMA, "num_hidden_layers": 1}},
    "L4": {"gpu": "l4"},
    "qwen2, QLoRA, few tokens": {
        "model": {**LLAMA, "model_type": "qwen2"}, **UNSLOTH_METHODS["QLoRA"], "micro_batch_size": 1, "sequence_length": 9,
    },
    "qwen2, QLoRA, RTX 5090": {
        "model": {**LLAMA, "model_type": "qwen2"}, **UNSLOTH_METHODS["QLoRA"], "gpu": "rtx-5090",
    },
    "H100": {"gpu": "h100"},
    "H100, QLoRA, kept": {"gpu": "h100", **UNSLOTH_METHODS["QLoRA"], "activation_checkpointing": False},
    "H100, whole buckets": {
        "gpu": "h100", "sequence_length": 640, "model": {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 6},
    },
    "RTX 5090": {"gpu": "rtx-5090"},
    "no clipping": {"max_grad_norm": 0.0},
}  # fmt: skip

# By library: the recipe keys that make it run, and its runs.
LIBRARIES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "liger-kernel": (
        {},
        {f"fused loss: {name}": {"loss": "fused_linear", **keys} for name, keys in FUSED_RUNS.items()}
        | {f"layers: {name}": {"stack": "liger", **keys} for name, keys in LIGER_RUNS.items()},
    ),
    "transformers": ({"packing": True}, PACKED_RUNS),
    "transformers_checkpoints": ({"activation_offloading": "checkpoints"}, CHECKPOINT_RUNS),
    "flash-attn": ({"attn_implementation": "flash_attention_2"}, FLASH_RUNS),
    "trl": ({"stack": "trl"}, TRL_RUNS),
    "unsloth": (
        {"stack": "unsloth", "method": "lora", "micro_batch_size": 4, "sequence_length": 700},
        UNSLOTH_RUNS,
    ),
    "torchtune": (
        {"loss": "chunked"},
        COURSES | _of_types(("mistral", "qwen3", "gemma", "olmo2", "mixtral", "starcoder2", "stablelm", "olmo")),
    ),
    "torchtune_recipes": ({"stack": "torchtune"}, TORCHTUNE_RUNS),
    "lomo-optim": ({}, LOMO_RUNS),
}
# Where a library is another package than its name says, or more: torchtune's recipes import torchao, in a version that PEFT
# refuses.
PACKAGES = {
    "torchtune_recipes": ("torchtune", "torchao"),
    "transformers_checkpoints": ("transformers",),
}
# What was traced, by library; the version is in the file's name.
TRACED = {name: next(Path(__file__).parent.glob(f"{name}-*.json"), None) for name in LIBRARIES}

Phases = list[list[Any]]


def packages_of(library: str) -> tuple[str, ...]:
    """What is to be installed for a library's traces, the one that gives the file its version first."""
    return PACKAGES.get(library, (library,))


def recipe_of(library: str, name: str) -> Recipe:
    """The recipe of one run."""
    own, runs = LIBRARIES[library]
    defaults = {"model": LLAMA, "micro_batch_size": 5, "sequence_length": 37, "optim": "adamw_torch_fused"}
    return Recipe(**{**defaults, **own, **runs[name]})


def traced(library: str, names: Iterable[str]) -> dict[str, Phases]:
    """[step, phase, peak bytes, bytes at the end] of every phase, by run, from traces made now."""
    asked = list(names)
    results = run_many([spec_of(resolve(recipe_of(library, name))) for name in asked])
    found = {}
    for name, result in zip(asked, results, strict=True):
        if isinstance(result, MemplanError):
            raise result
        found[name] = [[part.step, part.phase, part.peak_bytes, part.end_bytes] for part in result.merged_phases]
    return found


def recorded(library: str) -> dict[str, Phases]:
    """The same from the file."""
    path = TRACED[library]
    assert path is not None
    data: dict[str, Phases] = json.loads(path.read_text(encoding="utf-8"))["phases"]
    return data


def version_of(library: str) -> str:
    """The installed version; of flash-attn, which has no CPU build, the one whose source the trace follows."""
    return FLASH_ATTN_VERSION if library == "flash-attn" else version(library)


def main(libraries: Iterable[str]) -> None:
    """Trace and write."""
    for library in libraries:
        found = traced(library, LIBRARIES[library][1])
        versions = {
            name: version_of(name)
            for name in dict.fromkeys((*packages_of(library), "torch", "transformers", "peft", "bitsandbytes"))
        }
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(phases)}" for name, phases in found.items())
        path = Path(__file__).parent / f"{library}-{version_of(packages_of(library)[0])}.json"
        for old in path.parent.glob(f"{library}-*.json"):
            old.unlink()
        path.write_text(f'{{"versions": {json.dumps(versions)},\n"phases": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or LIBRARIES)
