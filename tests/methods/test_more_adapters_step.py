"""The step under more methods that wrap layers, against the trace: each once, and on every course in the full matrix."""

from __future__ import annotations

from typing import Any

import pytest

from tests.methods.agreement import COURSES, DECODER, GPT2, LLAMA, QUANTIZED, QWEN2, Agreement

# Adapter configs, each with what of `EXTRA` it can stand on.
METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "bat": ({"init_weights": "bat", "r": 8}, ("all linears",)),
    "c3a": ({"block_size": 8}, ("nf4", "all linears")),
    "deft": ({"r": 8, "deft_dropout": 0.1}, ("all linears",)),
    "delora": ({"r": 8, "module_dropout": 0.1}, ("all linears",)),
    "glora": ({}, ("all linears",)),
    "gralora": ({"r": 32, "hybrid_r": 8, "gralora_dropout": 0.1}, ("nf4", "gpt2", "all linears")),
    "hira": ({"hira_dropout": 0.1}, ("nf4", "int8", "all linears")),
    "hra": ({"r": 4}, ("all linears",)),
    "peanut": ({"r": 8, "depth": 2}, ("all linears",)),
    "pvera": ({"r": 8, "pvera_dropout": 0.1}, ("nf4", "int8", "gpt2", "all linears")),
    "randlora": ({"r": 32, "randlora_dropout": 0.1}, ("nf4", "int8", "gpt2", "all linears")),
    "road": ({"group_size": 8}, ("nf4", "int8", "all linears")),
    "shira": ({}, ("all linears",)),
    "unilora": ({"r": 8, "unilora_dropout": 0.1}, ("gpt2", "all linears")),
    "vblora": ({"r": 4, "vector_length": 8, "vblora_dropout": 0.1}, ("nf4", "int8", "gpt2", "all linears")),
}
GEMMA = {"model_type": "gemma", **DECODER}
EXTRA: dict[str, dict[str, Any]] = {
    "nf4": QUANTIZED,
    "int8": {"load_in_8bit": True},
    "gpt2": {"model": GPT2, "precision": "amp", "target_modules": ["c_attn", "c_fc"]},
    "all linears": {
        "model": QWEN2,
        "target_modules": "all-linear",
        "precision": "amp",
        "activation_checkpointing": True,
    },
}
MORE_COURSES: dict[str, dict[str, Any]] = {
    **COURSES,
    "float32 under autocast": {"model": {**LLAMA, "dtype": "float32"}, "precision": "amp"},
    "16-bit adapters under autocast": {"autocast_adapter_dtype": False, "precision": "amp"},
    "gemma": {"model": GEMMA, "target_modules": "all-linear", "micro_batch_size": 3, "sequence_length": 37},
    "one row": {
        "micro_batch_size": 1,
        "sequence_length": 33,
        "target_modules": ["o_proj", "down_proj"],
        "precision": "amp",
    },
    "reentrant, amp": {"activation_checkpointing": "reentrant", "precision": "amp", "target_modules": "all-linear"},
}


def cases(extra_too: bool, courses: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for method, (peft, extra) in METHODS.items():
        # HRA is not walked with 16-bit vectors under autocast.
        chosen = {
            name: MORE_COURSES[name] for name in courses if method != "hra" or "16-bit adapters under" not in name
        }
        if extra_too:
            chosen |= {name: EXTRA[name] for name in extra}
        for name, keys in chosen.items():
            found[f"{method}, {name}"] = {"method": {"bat": "miss"}.get(method, method), "peft": peft, **keys}
    return found


def prompted(layers: int, **keys: Any) -> dict[str, Any]:
    """An adaption prompt in the last of five layers."""
    peft = {"adapter_len": 10, "adapter_layers": layers, "task_type": "CAUSAL_LM"}
    return {"model": {**LLAMA, "num_hidden_layers": 5}, "method": "adaption_prompt", "peft": peft, **keys}


PROMPTED = {
    f"adaption_prompt, {name}": prompted(3, **keys) for name, keys in COURSES.items() if "16-bit" not in name
} | {
    "adaption_prompt in every layer": prompted(5, activation_checkpointing=True, precision="amp"),
    "adaption_prompt, Mistral": prompted(1, model={**LLAMA, "model_type": "mistral", "num_key_value_heads": 6}),
}
COMMON = Agreement(
    {**cases(False, ("checkpointed, amp, eager",)), "adaption_prompt, fp32": prompted(2, precision="fp32")}
)
EVERY = Agreement({**cases(True, tuple(MORE_COURSES)), **PROMPTED})


@pytest.mark.parametrize("name", COMMON.cases)
def test_walk_equals_trace(name: str) -> None:
    COMMON.check(name)


@pytest.mark.full_matrix
@pytest.mark.parametrize("name", EVERY.cases)
def test_walk_equals_trace_on_every_course(name: str) -> None:
    EVERY.check(name)
