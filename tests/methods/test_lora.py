from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods import adapt
from memplan.step.site import LoraSite
from tests.methods.matrix import architecture, compare
from tests.methods.small import LLAMA, QWEN3_MOE, TIED_LLAMA

DTYPES = [
    pytest.param(DType.FLOAT32, True, id="float32"),
    pytest.param(DType.BFLOAT16, True, id="bfloat16"),
    pytest.param(DType.FLOAT16, False, id="float16-no-autocast"),
]

CAUSAL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLAMA, {}),
    (LLAMA, {"target_modules": "all-linear", "r": 3}),
    (LLAMA, {"target_modules": "ALL-LINEAR", "exclude_modules": ["o_proj"]}),
    (LLAMA, {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"}),
    (LLAMA, {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "bias": "all"}),
    (LLAMA, {"target_modules": ["q_proj"], "lora_bias": True}),
    (LLAMA, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    (LLAMA, {"target_modules": r".*\.1\..*_proj", "rank_pattern": {"q_proj": 5, r"^model.layers.1.mlp.up_proj": 2}}),
    (LLAMA, {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    (LLAMA, {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}),
    (LLAMA, {"target_modules": ["model.layers.0.self_attn.q_proj", "mlp.up_proj"]}),
    (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    (LLAMA, {"init_lora_weights": "mica"}),
    (LLAMA, {"init_lora_weights": "pissa"}),
    (LLAMA, {"init_lora_weights": "pissa_niter_4"}),
    (LLAMA, {"init_lora_weights": "olora"}),
    (LLAMA, {"init_lora_weights": "orthogonal"}),
    (LLAMA, {"kasa_config": {}}),
    (LLAMA, {"velora_config": {"num_groups": 4}}),
    (LLAMA, {"alora_invocation_tokens": [1]}),
    (LLAMA, {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2}}),
    (TIED_LLAMA, {"target_modules": ["q_proj", "lm_head"]}),
    (TIED_LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    (TIED_LLAMA, {"modules_to_save": ["lm_head", "embed_tokens"], "ensure_weight_tying": True}),
    (TIED_LLAMA, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    (TIED_LLAMA, {"trainable_token_indices": [1, 5]}),
    (TIED_LLAMA, {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}}),
    (TIED_LLAMA, {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1]}}),
    (LLAMA, {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [3]}}),
]


@pytest.mark.parametrize(("dtype", "autocast"), DTYPES)
@pytest.mark.parametrize(("config", "options"), CAUSAL, ids=lambda value: str(value)[:60])
def test_causal_lm_equals_peft(config: dict[str, Any], options: dict[str, Any], dtype: DType, autocast: bool) -> None:
    found, _, _ = compare(config, "causal-lm", "LORA", options, dtype=dtype, device="cpu", autocast=autocast)
    assert found == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "bias": "lora_only"},
        {"target_modules": ["q_proj", "score"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_sequence_classifier_equals_peft(options: dict[str, Any]) -> None:
    found, _, ours = compare(LLAMA, "sequence-classification", "LORA", options, num_labels=5)
    assert found == []
    assert ours.parameters["score.modules_to_save.default.weight"][2]


@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "target_modules": []},
        {"target_modules": ["gate_proj", "up_proj", "down_proj"], "r": 3},
        {"target_modules": "all-linear", "r": 3},
        {"target_modules": r".*experts\.(gate|up)_proj"},
        {"target_modules": r".*\.0\..*(q|down)_proj"},
    ],
    ids=str,
)
def test_expert_parameters_equal_peft(options: dict[str, Any]) -> None:
    found, _, ours = compare(QWEN3_MOE, "causal-lm", "LORA", options)
    assert found == []
    assert any(".experts." in name and "lora_A" in name for name in ours.parameters)


def test_a_fused_expert_parameter_needs_all_its_parts() -> None:
    with pytest.raises(InvalidValueError, match="fused into gate_up_proj: target up_proj as well"):
        adapt(architecture(QWEN3_MOE, "causal-lm"), "lora", {"target_modules": ["gate_proj"]})


def test_plain_lora_gives_a_site_and_leaves_nothing_unwalked() -> None:
    described = architecture(LLAMA, "causal-lm")
    found = adapt(
        described, "lora", {"r": 3, "lora_dropout": 0.1, "target_modules": "all-linear"}, dtype=DType.BFLOAT16
    )
    assert len(found.lora) == 7 * LLAMA["num_hidden_layers"]
    assert set(found.lora.values()) == {LoraSite(rank=3, dropout=0.1, dtype=DType.FLOAT32)}
    assert found.unwalked == ()


def test_site_has_the_rank_of_its_pattern_and_the_dtype_of_its_weights() -> None:
    described = architecture(LLAMA, "causal-lm")
    found = adapt(
        described,
        "lora",
        {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 5}, "lora_bias": True},
        dtype=DType.BFLOAT16,
        autocast_adapter_dtype=False,
    )
    assert found.lora["model.layers.0.self_attn.k_proj"] == LoraSite(5, 0.0, DType.BFLOAT16, bias=True)
    assert found.lora["model.layers.0.self_attn.q_proj"].rank == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "DoRA on an embedding or a convolution"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"kasa_config": {}}, "KaSA's diagonal"),
    ],
    ids=str,
)
def test_what_the_walk_does_not_know_is_said(options: dict[str, Any], words: str) -> None:
    assert words in adapt(architecture(LLAMA, "causal-lm"), "lora", options).unwalked


@pytest.mark.parametrize("name", ["qlora", "rslora", "pissa", "olora"])
def test_aliases_of_lora_count_and_walk_as_lora(name: str) -> None:
    described = architecture(LLAMA, "causal-lm")
    found, plain = adapt(described, name, None), adapt(described, "lora", None)
    assert found.added == plain.added
    assert found.lora == plain.lora
    assert found.unwalked == ()
    assert found.method == name


def test_adapter_on_a_quantized_layer_is_created_in_its_compute_dtype() -> None:
    described = architecture(LLAMA, "causal-lm")
    paths = [module.path for module in described.modules if module.kind == "linear" and module.path != "lm_head"]
    found = adapt(
        described,
        "qlora",
        {"target_modules": "all-linear"},
        dtype=DType.BFLOAT16,
        quantized=paths,
        quantized_dtype=DType.FLOAT16,
        autocast_adapter_dtype=False,
    )
    assert {parameter.dtype for parameter in found.added} == {DType.FLOAT16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 49, "target_modules": ["q_proj"]}, r"peft.r = 49 .* at most 48 for model.layers.0.self_attn.q_proj"),
        ({"r": 25, "target_modules": ["v_proj"]}, r"at most 24 for model.layers.0.self_attn.v_proj, which is 48 x 24"),
        ({"r": 1000, "target_modules": "all-linear"}, "peft.r = 1000"),
        ({"rank_pattern": {"v_proj": 30}, "target_modules": ["v_proj"]}, "peft.r = 30"),
        ({"r": 0}, "peft.r = 0 .* a positive integer"),
        ({"r": -1}, "a positive integer"),
        ({"r": 2.5}, "a positive integer"),
        ({"rank_pattern": {"q_proj": 0}}, "peft.rank_pattern = 0"),
        ({"target_modules": ["q_porj"]}, r"no module of this llama model matches(.|\n)*did you mean q_proj"),
        ({"target_modules": "no.*such"}, "no module of this llama model matches"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"target_modules": ["self_attn"]}, "it is a container of modules"),
        ({"target_modules": ["input_layernorm"]}, "it is a LlamaRMSNorm; LORA adapts"),
        ({"target_modules": 5}, "a list of names or a regular expression"),
        ({"modules_to_save": ["nothing"]}, r"peft.modules_to_save(.|\n)*its modules"),
        ({"modules_to_save": "embed_tokens"}, "a list of names"),
        ({"target_modules": "q_proj", "layers_to_transform": [0]}, "it needs target_modules as a list"),
        ({"layers_pattern": "layers"}, "it needs layers_to_transform"),
        ({"lora_bias": True, "use_dora": True}, "peft.lora_bias"),
        ({"lora_bias": True, "target_modules": ["embed_tokens"]}, "no bias for an embedding"),
        ({"use_dora": True, "kasa_config": {}}, "combines no two of these"),
        ({"init_lora_weights": "svd"}, "peft.init_lora_weights = 'svd'"),
        ({"trainable_token_indices": [97]}, "peft.trainable_token_indices = 97 is not allowed: an index below the voc"),
        (
            {"trainable_token_indices": "a"},
            "peft.trainable_token_indices = 'a' is not allowed: a list of token indices",
        ),
        ({"trainable_token_indices": {"embed_tokens": [1]}, "modules_to_save": ["embed_tokens"]}, "trains it whole"),
        ({"bias": "some"}, "peft.bias = 'some'"),
        ({"use_bdlora": True}, "peft.use_bdlora = True"),
        ({"use_bdlora": {"target_modules_bd_a": 5}}, "peft.use_bdlora.target_modules_bd_a = 5"),
        ({"velora_config": {"num_groups": 0}}, "peft.velora_config.num_groups = 0"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), "lora", options)


@pytest.mark.parametrize(
    "options", [{"layer_replication": [[0, 2], [1, 2]]}, {"monteclora_config": {"num_samples": 4}}]
)
def test_what_is_not_covered_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(options))):
        adapt(architecture(LLAMA, "causal-lm"), "lora", options)


def test_rank_may_exceed_a_head_of_few_labels() -> None:
    options = {"target_modules": ["q_proj", "score"], "task_type": None}
    found = adapt(architecture(LLAMA, "sequence-classification"), "lora", options)
    assert "score" in found.lora


def test_peft_cannot_train_an_adapted_layer_whole() -> None:
    described = architecture(LLAMA, "token-classification")
    with pytest.raises(InvalidValueError, match="the adapter targets this layer too"):
        adapt(described, "lora", {"target_modules": "all-linear"})
    with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
        compare_real_token_classifier()


def compare_real_token_classifier() -> None:
    from tests.methods.matrix import real_peft_model

    real_peft_model(LLAMA, "token-classification", "LORA", {"target_modules": "all-linear"})
