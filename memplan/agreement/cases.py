"""The choices that the sample is made of, and the small model of every walked type.

Model types and methods come from their registries: what is walked there is in the sample.

Known limits:
    4-bit layers are compared with more than 1536 rows. With fewer, bitsandbytes has kernels that need no dequantized weight,
    which depend on the GPU; the walk takes it to be dequantized, an upper bound.
    A method is in the sample with the settings that it has by itself; those that need more are in `tests/methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from memplan.agreement.covering import Row
from memplan.architecture import ModuleKind
from memplan.errors import MemplanError
from memplan.families import Head, describe, family_of, model_types
from memplan.methods import list_methods
from memplan.model_config import normalise_config
from memplan.model_config.schema import config_class
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.unsupported import unsupported_parts

# Odd sizes, so that rounding to blocks shows; three layers, so that folding has something to fold. A type takes those that
# its config class knows.
SIZES: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1000, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 5003, "max_position_embeddings": 514, "pad_token_id": 0,
    "n_embd": 384, "n_layer": 3, "n_head": 6, "n_positions": 514, "rotary_dim": 32,
    "ffn_dim": 1000, "word_embed_proj_dim": 384,
    "dim": 384, "n_layers": 3, "n_heads": 6, "hidden_dim": 1000,
    "d_model": 384, "d_kv": 64, "d_ff": 1000, "num_heads": 6, "num_layers": 3, "encoder_layers": 3, "decoder_layers": 3,
    "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1000, "decoder_ffn_dim": 1000,
    "sliding_window": 20,
    "num_experts": 6, "num_local_experts": 6, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "moe_intermediate_size": 200, "shared_expert_intermediate_size": 328, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 128, "q_lora_rank": 160, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}  # fmt: skip
# Latent attention has no grouped heads, and a head's size follows from its parts.
ONLY: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_key_value_heads": 6, "head_dim": None},
    "deepseek_v3": {"num_key_value_heads": 6, "head_dim": None},
    # The third version, which is the second's class.
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 32,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_relative_positions": -1,
    },
}

PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16", "precision": "pure"},
    "amp": {"dtype": "float32", "precision": "amp"},
    "fp32": {"dtype": "float32", "precision": "fp32"},
    "fp16": {"dtype": "float16", "precision": "pure"},
    "fp16 amp": {"dtype": "float32", "precision": "amp", "autocast_dtype": "float16"},
}
SHAPES: dict[str, tuple[int, int]] = {"2 x 129": (2, 129), "3 x 37": (3, 37), "1 x 64": (1, 64), "5 x 21": (5, 21)}
MANY_ROWS = (13, 129)
CHECKPOINTING: dict[str, object] = {"none": False, "non-reentrant": True, "reentrant": "reentrant"}
RESULTS: dict[str, dict[str, Any]] = {
    "dropped": {}, "kept": {"keep_outputs": True}, "cache kept": {"keep_outputs": True, "use_cache": True},
}  # fmt: skip
OPTIMIZERS = (
    "adamw_torch_fused", "adamw_torch", "sgd", "adafactor", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_32bit", "rmsprop",
)  # fmt: skip


def walked_types() -> list[str]:
    """Model types whose step is walked."""
    return [name for name in model_types() if name in family_of(name).walked]


@cache
def small_config(model_type: str) -> dict[str, Any]:
    """A small model of a type, as the keys of a config.json."""
    known = config_class(model_type).accepted
    aliases = config_class(model_type).aliases
    sizes = {key: value for key, value in {**SIZES, **ONLY.get(model_type, {})}.items() if value is not None}
    return {"model_type": model_type} | {
        key: value
        for key, value in sizes.items()
        if key in ONLY.get(model_type, {}) or (key in known and aliases.get(key) not in sizes)
    }


@cache
def attention_linears(model_type: str) -> tuple[str, ...]:
    """Names of the linear layers within attention: adapters on them exist for every family, on experts they do not."""
    config = normalise_config(small_config(model_type))
    modules = describe(config, Head(family_of(model_type).tasks[0])).modules
    names = {
        module.path.rpartition(".")[2]
        for module in modules
        if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D) and "att" in module.path.lower()
    }
    return tuple(sorted(names))


def factors() -> dict[str, list[str]]:
    """Every factor with its choices, the plainest first."""
    return {
        "model_type": sorted(walked_types(), key=lambda name: (name != "llama", name)),
        "method": sorted(walked_methods(), key=lambda name: (name != "full", name)),
        "precision": list(PRECISIONS),
        "attention": ["default", "eager"],
        "checkpointing": list(CHECKPOINTING),
        "optimizer": list(OPTIMIZERS),
        "padding": ["no", "yes"],
        "shape": list(SHAPES),
        "accumulation": ["1", "3"],
        "outputs": list(RESULTS),
        "gpu": ["a100-40gb", "h100", "t4"],
        "head": ["usual", "sequence-classification", "token-classification"],
        "clipping": ["1.0", "0.0"],
    }


def recipe_of(row: Row) -> Recipe:
    """The recipe that a row stands for.

    Raises:
        InputError: its choices do not go together.
    """
    model_type, method = row["model_type"], row["method"]
    batch, sequence = MANY_ROWS if method == "qlora" else SHAPES[row["shape"]]
    keys: dict[str, Any] = {
        "model": small_config(model_type), "method": method, "optim": row["optimizer"],
        "activation_checkpointing": CHECKPOINTING[row["checkpointing"]],
        "padding": row["padding"] == "yes", "micro_batch_size": batch, "sequence_length": sequence,
        "gradient_accumulation_steps": int(row["accumulation"]), "gpu": row["gpu"],
        "max_grad_norm": float(row["clipping"]), **PRECISIONS[row["precision"]], **RESULTS[row["outputs"]],
    }  # fmt: skip
    if row["attention"] != "default":
        keys["attn_implementation"] = row["attention"]
    if row["head"] != "usual":
        keys["task"] = row["head"]
    if _wants_targets(method):
        keys["target_modules"] = list(attention_linears(model_type))
    return Recipe(**keys)


def is_walked(row: Row) -> bool:
    """Whether a row's recipe is a legal one whose step is walked."""
    try:
        resolved = resolve(recipe_of(row))
        return not unsupported_parts(resolved, prepare(resolved)).texts
    except MemplanError:
        return False


@cache
def walked_methods() -> tuple[str, ...]:
    """Methods that are walked on the small Llama with the settings that they have by themselves."""
    return tuple(method.name for method in list_methods() if is_walked(plain_row(method=method.name)))


def plain_row(**choices: str) -> Row:
    """The plainest row with some choices."""
    plain = {
        "model_type": "llama", "method": "full", "precision": "bf16", "attention": "default", "checkpointing": "none",
        "optimizer": "adamw_torch_fused", "padding": "no", "shape": "2 x 129", "accumulation": "1", "outputs": "dropped",
        "gpu": "a100-40gb", "head": "usual", "clipping": "1.0",
    }  # fmt: skip
    return {**plain, **choices}


@cache
def _wants_targets(method: str) -> bool:
    """Whether a method takes target modules: then it is given attention's, which every family has."""
    config = small_config("llama")
    keys: Mapping[str, Any] = {"model": config, "method": method, "target_modules": ["q_proj"]}
    try:
        prepare(resolve(Recipe(micro_batch_size=2, sequence_length=64, **keys)))
    except MemplanError:
        return False
    return True
