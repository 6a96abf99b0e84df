"""The orders of a model's modules."""

from __future__ import annotations

from memplan.architecture import Architecture, Module, ModuleKind, Parameter
from memplan.families import Head, describe
from memplan.families.registration import registered_children
from memplan.model_config import normalise_config
from memplan.recipe import Task


def linear(path: str) -> Module:
    return Module(path, ModuleKind.LINEAR, (Parameter("weight", (4, 4)),), 4, 4)


def test_modules_are_registered_in_the_order_of_the_table() -> None:
    paths = ("embed", "layers.0.norm", "layers.0.attn.q", "layers.0.extra", "layers.1.norm", "layers.1.attn.q", "head")
    order = {"layers.*": ("attn", "norm"), "attn": ("k", "q")}
    architecture = Architecture("any", "causal-lm", {}, tuple(map(linear, paths)), registered_children=order)
    assert [module.path for module in architecture.registered] == [
        "embed", "layers.0.attn.q", "layers.0.norm", "layers.0.extra", "layers.1.attn.q", "layers.1.norm", "head",
    ]  # fmt: skip


def test_the_longest_end_of_a_path_says_the_order() -> None:
    paths = (
        "text.layers.0.a",
        "text.layers.0.b",
        "vision.layers.0.a",
        "vision.layers.0.b",
        "layers.10.a",
        "layers.2.a",
    )
    order = {"layers.*": ("b", "a"), "vision.layers.*": ("a", "b")}
    architecture = Architecture("any", "causal-lm", {}, tuple(map(linear, paths)), registered_children=order)
    assert [module.path for module in architecture.registered] == [
        "text.layers.0.b", "text.layers.0.a", "vision.layers.0.a", "vision.layers.0.b", "layers.2.a", "layers.10.a",
    ]  # fmt: skip


def test_a_container_with_parameters_comes_before_what_it_holds() -> None:
    modules = (linear("block.gate"), Module("block", ModuleKind.BARE, (Parameter("sinks", (4,)),)))
    architecture = Architecture("any", "causal-lm", {}, modules)
    assert [module.path for module in architecture.registered] == ["block", "block.gate"]


def test_a_tied_parameter_stands_where_it_is_met_first_under_the_name_that_owns_it() -> None:
    config = normalise_config({"model_type": "xlm-roberta", "num_hidden_layers": 1})
    names = [name for name, _, _ in describe(config, Head(Task.MASKED_LM)).named_parameters()]
    assert names[:2] == ["lm_head.bias", "lm_head.dense.weight"]
    assert "lm_head.decoder.weight" not in names
    assert names.index("roberta.embeddings.word_embeddings.weight") < names.index("roberta.embeddings.LayerNorm.weight")
    assert names.index("roberta.embeddings.word_embeddings.weight") < 7


def test_the_parts_of_a_multimodal_model_bring_their_own_order() -> None:
    vision = {"model_type": "clip_vision_model"}
    found = registered_children(
        {"model_type": "llava", "text_config": {"model_type": "qwen3"}, "vision_config": vision}
    )
    assert found["vision_tower.encoder.layers.*"][:2] == ("self_attn", "layer_norm1")
    assert found["self_attn"][-2:] == ("q_layernorm", "k_layernorm")
    assert "vision_tower.encoder.layers.*" not in registered_children({"model_type": "llava"})
