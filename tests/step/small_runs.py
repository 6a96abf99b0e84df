"""Small random recipes whose step is walked, and what the engine makes of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from memplan import training_step
from memplan.prepare import Prepared, prepare
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve
from memplan.step.optimizer_step import construction_events
from memplan.step.recording import Recording
from memplan.step.run import Run
from memplan.unsupported import unsupported_parts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 208,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "tie_word_embeddings": False,
}

CONFIGS = st.builds(
    lambda family, heads, grouped, size, ffn, layers, vocab, tied: {
        "model_type": family,
        "hidden_size": heads * size,
        "head_dim": size,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if grouped else heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    },
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gemma"]),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.sampled_from([32, 64]),
    st.sampled_from([96, 208, 512]),
    st.integers(1, 5),
    st.sampled_from([131, 1000]),
    st.booleans(),
)

METHODS: list[dict[str, Any]] = [
    {},
    {"trainable": ["*lm_head*", "*embed_tokens*"]},
    {"method": "lora", "peft": {"r": 4}},
    {"method": "lora", "peft": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}},
    {"method": "qlora", "peft": {"r": 4}},
    {"method": "qlora", "peft": {"r": 4}, "activation_checkpointing": False, "prepare_model_for_kbit_training": False},
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"precision": "amp"},
    {"dtype": "bfloat16"},
    {"activation_checkpointing": True},
    {"activation_checkpointing": "reentrant", "precision": "amp"},
    {"attn_implementation": "eager"},
    {"padding": True},
    {"keep_outputs": True, "use_cache": True},
    {"gpu": "t4", "dtype": "float16"},
    {"gradient_accumulation_steps": 3},
    {"gradient_accumulation_steps": 2, "activation_checkpointing": "reentrant", "keep_outputs": True},
]
OPTIMIZERS = ["adamw_torch_fused", "adamw_torch", "sgd", "adagrad", "adamw_8bit"]


def _recipe(
    config: dict[str, Any], method: dict[str, Any], setting: dict[str, Any], optim: str, batch: int, sequence: int
) -> Recipe:
    keys = {**method, **setting}
    if method.get("method") == "qlora":
        keys.pop("precision", None)
    if "trainable" in method and config["tie_word_embeddings"]:
        keys["trainable"] = ["*embed_tokens*"]
    return Recipe(model=config, optim=optim, micro_batch_size=batch, sequence_length=sequence, **keys)


RECIPES = st.builds(
    _recipe,
    CONFIGS,
    st.sampled_from(METHODS),
    st.sampled_from(SETTINGS),
    st.sampled_from(OPTIMIZERS),
    st.integers(1, 3),
    st.sampled_from([8, 24, 64]),
)


def prepared(recipe: Recipe | None = None, **keys: Any) -> tuple[Resolved, Prepared]:
    """A resolved recipe (by default the small Llama) and all that does not depend on its batch."""
    resolved = resolve(recipe or Recipe(**{"model": LLAMA, "micro_batch_size": 2, "sequence_length": 32, **keys}))
    found = prepare(resolved)
    assert not unsupported_parts(resolved, found).step
    return resolved, found


def recorded(resolved: Resolved, found: Prepared, *, fold: bool = True) -> Recording:
    """The step's first micro-step."""
    return training_step.walk(resolved, found, fold=fold)[0][0]


def run_of(resolved: Resolved, found: Prepared, *, fold: bool = True) -> Run:
    """The whole run as the allocator sees it."""
    clipping, optimizer_events = training_step.updating(resolved, found)
    return Run(
        load_events=found.loading.events,
        last_key=found.loading.last_key,
        micro_steps=training_step.walk(resolved, found, fold=fold)[0],
        construction=construction_events(found.optimizer, found.state.trained),
        clipping=clipping,
        optimizer_events=optimizer_events,
    )
