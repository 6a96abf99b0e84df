from __future__ import annotations

import pytest

from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods import adapt
from memplan.methods.base import matches
from tests.methods.matrix import architecture, build_model
from tests.methods.small import DISTILBERT, LLAMA, QWEN2, TIED_LLAMA


@pytest.mark.parametrize("config", [LLAMA, TIED_LLAMA], ids=["untied", "tied"])
def test_full_trains_every_parameter(config: dict[str, object]) -> None:
    described = architecture(config, "causal-lm")
    found = adapt(described, None)
    assert found.trainable_base == {name for name, _ in build_model(config, "causal-lm").named_parameters()}
    assert (found.method, found.added, found.lora, found.unwalked) == ("full", (), {}, ())


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("lm_head", "lm_head.weight", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj.weight", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj.weight", False),
        ("layers.1", "model.layers.1.mlp.up_proj.weight", True),
        ("q_proj.weight", "model.layers.1.self_attn.q_proj.weight", True),
        ("proj", "model.layers.1.self_attn.q_proj.weight", False),
        ("*norm*", "model.layers.1.input_layernorm.weight", True),
        ("model.layers.?.*", "model.layers.1.mlp.up_proj.weight", True),
        ("re:.*(q|k)_proj.*", "model.layers.1.self_attn.k_proj.weight", True),
        ("re:.*k_proj", "model.layers.1.self_attn.k_proj.weight", False),
    ],
)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_patterns_add_and_take_away_in_order() -> None:
    described = architecture(LLAMA, "causal-lm")
    found = adapt(described, "full", trainable=("model.layers.2", "lm_head", "!*norm*")).trainable_base
    assert "lm_head.weight" in found
    assert "model.layers.2.mlp.up_proj.weight" in found
    assert not any("norm" in name or "layers.1" in name for name in found)


def test_a_tied_parameter_is_trained_by_either_of_its_names() -> None:
    described = architecture(TIED_LLAMA, "causal-lm")
    for name in ("lm_head", "embed_tokens"):
        assert adapt(described, "full", trainable=(name,)).trainable_base == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (("q_porj",), r"no parameter has such a name(.|\n)*did you mean q_proj"),
        (("lm_head", "!*"), "nothing is left to train"),
        (("re:(",), "not a regular expression"),
    ],
)
def test_patterns_that_are_refused(trainable: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), "full", trainable=trainable)


def test_bitfit_trains_biases_and_the_head_of_a_classifier() -> None:
    model = build_model(DISTILBERT, "sequence-classification")
    expected = {name for name, _ in model.named_parameters() if name.endswith(".bias") or "classifier" in name}
    assert adapt(architecture(DISTILBERT, "sequence-classification"), "bitfit").trainable_base == expected
    biases = adapt(architecture(QWEN2, "causal-lm"), "bitfit").trainable_base
    assert len(biases) == 3 * QWEN2["num_hidden_layers"]


def test_bitfit_trains_no_more_than_biases_of_a_masked_language_model() -> None:
    biases = adapt(architecture({"model_type": "modernbert", "vocab_size": 320}, "masked-lm"), "bitfit").trainable_base
    assert biases == {"decoder.bias"}


def test_bitfit_needs_a_bias() -> None:
    with pytest.raises(InvalidValueError, match="this llama model has no bias to train"):
        adapt(architecture(LLAMA, "causal-lm"), "bitfit")


def test_arguments_that_do_not_belong_together() -> None:
    described = architecture(LLAMA, "causal-lm")
    with pytest.raises(InvalidValueError, match="full takes no adapter config"):
        adapt(described, "full", {"r": 8})
    with pytest.raises(InvalidValueError, match="only with method full"):
        adapt(described, "lora", trainable=("lm_head",))


@pytest.mark.parametrize("method", ["adamss", "shadow", "xlora"])
def test_methods_without_a_count_are_refused_by_name(method: str) -> None:
    with pytest.raises(UnsupportedError, match=method):
        adapt(architecture(LLAMA, "causal-lm"), method)


def test_results_are_cached() -> None:
    described = architecture(LLAMA, "causal-lm")
    assert adapt(described, "lora", {"r": 4}) is adapt(described, "LoRA", {"r": 4})
    assert adapt(described, "lora", {"r": 4}) is not adapt(described, "lora", {"r": 5})
