"""Which of torchtune's builders make which configs, and which adapters they can put in."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import UnsupportedError
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.torchtune.models import component_builder, is_built, lora_arguments

LORA = {"peft_type": "LORA"}


def _config(model: Any) -> Any:
    return resolve(Recipe(model=model)).config


@pytest.mark.parametrize(("model", "name", "positions"), [
    ("meta-llama/Llama-2-7b-hf", "llama3", 4096),
    ("meta-llama/Llama-3.1-8B", "llama3_1", 131_072),
    ("meta-llama/Llama-3.2-1B", "llama3_2", 131_072),
    ("mistralai/Mistral-7B-v0.1", "mistral", 32_768),
    ("Qwen/Qwen2.5-7B", "qwen2", 131_072),
    ("google/gemma-2b", "gemma", 8192),
    ("google/gemma-2-9b", "gemma2", 8192),
    ("microsoft/Phi-3-mini-4k-instruct", "phi3", 4096),
    ("microsoft/phi-4", "phi3", 16_384),
])  # fmt: skip
def test_checkpoints_have_their_builder(model: str, name: str, positions: int) -> None:
    builder = component_builder(_config(model))
    assert (builder.name, builder.arguments["max_seq_len"]) == (name, positions)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "EleutherAI/pythia-160m", "google-t5/t5-small"])
def test_other_models_are_refused_by_name(model: str) -> None:
    config = _config(model)
    assert not is_built(config)
    with pytest.raises(UnsupportedError, match=config["model_type"]):
        component_builder(config)


def test_what_a_builder_cannot_make_is_named() -> None:
    config = _config("meta-llama/Llama-3.1-8B")
    for change, said in (
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"head_dim": 64}, "head_dim=64"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "type yarn"),
        ({"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default"}}, "only llama3_2 ties"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            component_builder({**config, **change})


def test_targets_become_lists_and_switches() -> None:
    builder = component_builder(_config("meta-llama/Llama-3.1-8B"))
    found = lora_arguments({**LORA, "r": 16, "target_modules": ["o_proj", "q_proj"]}, builder)
    assert (found.attention, found.mlp, found.output, found.rank) == (("q_proj", "output_proj"), False, False, 16)
    every = lora_arguments({**LORA, "target_modules": "all-linear", "use_dora": True}, builder)
    assert (len(every.attention), every.mlp, every.output, every.dora) == (4, True, False, True)


@pytest.mark.parametrize(("peft", "said"), [
    ({"target_modules": ["up_proj"]}, "none of an attention block's projections"),
    ({"target_modules": ["q_proj", "up_proj"]}, "up_proj alone"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"target_modules": ["q_proj"], "bias": "all"}, "bias=all"),
    ({"peft_type": "IA3"}, "IA3"),
])  # fmt: skip
def test_adapters_that_no_builder_takes_are_named(peft: dict[str, Any], said: str) -> None:
    builder = component_builder(_config("meta-llama/Llama-3.1-8B"))
    with pytest.raises(UnsupportedError, match=said):
        lora_arguments({**LORA, **peft}, builder)


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-1B", "google/gemma-2b"])
def test_a_tied_output_takes_no_adapter(model: str) -> None:
    builder = component_builder(_config(model))
    with pytest.raises(UnsupportedError, match="tied"):
        lora_arguments({**LORA, "target_modules": ["q_proj", "lm_head"]}, builder)
