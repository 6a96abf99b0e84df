"""Configurations as people copy them from tutorials."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from memplan.cards import load_card
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods import adapt
from tests.methods.matrix import architecture, build_model, card_config, compare, peft_config


def test_the_classic_line() -> None:
    """Mistral-7B with 5 added tokens, as its tutorial prints it."""
    config = {**load_card("mistralai/Mistral-7B-v0.1").config, "vocab_size": 32005}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
    described = architecture(config, "causal-lm")
    found = adapt(
        described, "lora", {"r": 8, "target_modules": targets, "task_type": "CAUSAL_LM"}, dtype=DType.BFLOAT16
    )
    trainable = sum(parameter.elements for parameter in found.added if parameter.trainable)
    total = described.total_elements + sum(parameter.elements for parameter in found.added)
    line = f"trainable: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"
    assert line == "trainable: 21,549,136 || all params: 7,263,322,192 || trainable%: 0.2967"


CLASSIC = {
    "r": 8,
    "lora_alpha": 32,
    "target_modules": ["q_lin", "v_lin"],
    "lora_dropout": 0.05,
    "bias": "none",
    "task_type": "SEQ_CLS",
}


def test_distilbert_with_two_labels_trains_both_layers_of_its_head() -> None:
    config = card_config("distilbert/distilbert-base-uncased", layers=None)
    found, _, ours = compare(config, "sequence-classification", "LORA", CLASSIC)
    assert found == []
    # 6 layers x 2 modules x 2 x 768 x 8, pre_classifier 768 x 768 + 768, classifier 768 x 2 + 2
    assert ours.trainable == 147_456 + 590_592 + 1_538


def test_classifier_in_4_bit_counts_as_peft_does() -> None:
    """The real bitsandbytes layers on the CPU, where `get_peft_model` dispatches to its own Linear4bit."""
    import bitsandbytes as bnb
    import peft

    config = card_config("distilbert/distilbert-base-uncased", layers=2)
    config.update(dim=64, hidden_dim=96, n_heads=4, vocab_size=97)
    described = architecture(config, "sequence-classification")
    quantized = [
        module.path for module in described.modules if module.kind == "linear" and "classifier" not in module.path
    ]
    model = build_model(config, "sequence-classification", dtype=DType.BFLOAT16, device="cpu")
    for path in quantized:
        parent, _, name = path.rpartition(".")
        linear = getattr(model.get_submodule(parent), name)
        layer = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=True,
        )
        layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4").to("cpu")
        layer.bias = linear.bias
        setattr(model.get_submodule(parent), name, layer)
    model.is_loaded_in_4bit = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft_config("LORA", CLASSIC, "sequence-classification"))
    found = adapt(
        described, "qlora", CLASSIC, dtype=DType.BFLOAT16, quantized=quantized, quantized_dtype=DType.BFLOAT16
    )
    trainable, total = adapted.get_nb_trainable_parameters()
    added = sum(parameter.elements for parameter in found.added)
    assert trainable == sum(parameter.elements for parameter in found.added if parameter.trainable)
    assert total == described.total_elements + added
    real = {
        name.removeprefix("base_model.model."): str(parameter.dtype).removeprefix("torch.")
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    assert real == {parameter.name: parameter.dtype for parameter in found.added if parameter.trainable}
    assert isinstance(adapted, nn.Module)


def test_a_quantized_head_cannot_be_trained() -> None:
    described = architecture(card_config("distilbert/distilbert-base-uncased"), "sequence-classification")
    with pytest.raises(InvalidValueError, match="its weight is quantized and cannot be trained"):
        adapt(described, "qlora", CLASSIC, quantized=["pre_classifier"])


@pytest.mark.parametrize(
    "method",
    ["loha", "lokr", "hra", "osf", "peanut", "psoft", "tinylora", "frod", "deft", "delora", "glora", "supertuning"],
)
def test_methods_that_fail_in_peft_on_4_bit_weights_are_refused(method: str) -> None:
    described = architecture(card_config("mistralai/Mistral-7B-v0.1"), "causal-lm")
    quantized = frozenset(module.path for module in described.modules if module.name == "q_proj")
    with pytest.raises(InvalidValueError, match="packed in 4 bits"):
        adapt(described, method, {"target_modules": ["q_proj"]}, quantized=quantized)
    assert adapt(described, method, {"target_modules": ["q_proj"]}, quantized=quantized, packed=False).added
