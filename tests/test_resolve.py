"""Every default with where it comes from, and what keys that contradict each other are told."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.filler import USER
from memplan.prepare import prepare
from memplan.quantization import Quantization, Scheme
from memplan.quantization_config import quantization_of
from memplan.recipe import Precision, Recipe, Task
from memplan.resolve import Resolved, resolve
from memplan.unsupported import unsupported_parts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "tie_word_embeddings": False,
}
BF16_LLAMA = {**LLAMA, "torch_dtype": "bfloat16"}
FP16_LLAMA = {**LLAMA, "torch_dtype": "float16"}


def resolved(**keys: Any) -> Resolved:
    return resolve(Recipe(**{"model": LLAMA, **keys}))


ALWAYS: dict[str, tuple[object, str]] = {
    "optim": ("adamw_torch_fused", "TrainingArguments, transformers 5 with torch >= 2.8"),
    "max_grad_norm": (1.0, "TrainingArguments"),
    "gradient_accumulation_steps": (1, "TrainingArguments"),
    "micro_batch_size": (1, "default"),
    "sequence_length": (2048, "default"),
    "padding": (False, "default: every sequence is full"),
    "packing": (False, "default"),
    "attn_implementation": ("sdpa", "transformers' default where the model has it"),
    "loss": ("default", "default: the model's own loss"),
    "stack": ("transformers", "default"),
    "torch_version": ("2.13", "default: the version that memplan's tests trace"),
    "keep_outputs": (False, "Trainer drops the outputs before backward"),
    "use_cache": (False, "TrainingArguments"),
    "eval_strategy": ("no", "TrainingArguments"),
    "gpus": (1, "default: one GPU"),
    "expandable_segments": (False, "default: PyTorch's allocator as it comes"),
    "num_added_tokens": (0, "default: the vocabulary as it is"),
}
FULL: dict[str, tuple[object, str]] = {
    "model": (LLAMA, USER),
    "method": ("full", "default: every parameter is trained"),
    "task": ("causal-lm", "default of llama models"),
    "precision": ("fp32", "weights are float32"),
    "dtype": ("float32", "precision fp32"),
    "activation_checkpointing": (False, "TrainingArguments"),
    **ALWAYS,
}
QLORA: dict[str, tuple[object, str]] = {
    "model": ("mistralai/Mistral-7B-v0.1", USER),
    "method": ("qlora", USER),
    "peft": ({"peft_type": "LORA", "target_modules": "all-linear"}, "PEFT's defaults for the method"),
    "autocast_adapter_dtype": (True, "PEFT: get_peft_model(autocast_adapter_dtype=True)"),
    "task": ("causal-lm", "the config's architectures: MistralForCausalLM"),
    "load_in_4bit": (True, "method qlora"),
    "bnb_4bit_quant_type": ("nf4", "QLoRA, arXiv 2305.14314"),
    "bnb_4bit_use_double_quant": (True, "QLoRA, arXiv 2305.14314"),
    "bnb_4bit_quant_storage": ("uint8", "BitsAndBytesConfig"),
    "precision": ("amp", "default: quantized bases are trained under autocast"),
    "dtype": ("bfloat16", "the checkpoint's, 16-bit under quantization"),
    "autocast_dtype": ("bfloat16", "default"),
    "bnb_4bit_compute_dtype": ("bfloat16", "the autocast dtype"),
    "prepare_model_for_kbit_training": (True, "PEFT's recipe for quantized bases"),
    "activation_checkpointing": (
        "reentrant",
        "prepare_model_for_kbit_training turns it on, in torch's default variant",
    ),
    "gpu": ("rtx-4090", USER),
    **ALWAYS,
}


def table(found: Resolved) -> dict[str, tuple[object, str]]:
    return {key: (value, found.sources[key]) for key, value in found.values.items()}


def test_every_default_of_full_fine_tuning_and_its_source() -> None:
    assert table(resolved()) == FULL


def test_every_default_of_qlora_and_its_source() -> None:
    assert table(resolve(Recipe(model="mistralai/Mistral-7B-v0.1", method="qlora", gpu="RTX-4090"))) == QLORA


def test_values_and_sources_have_the_same_keys() -> None:
    found = resolved(method="lora", lora_r=4, trainable=None, num_labels=3, task="sequence-classification")
    assert list(found.values) == list(found.sources)
    assert found["num_labels"] == 3
    assert found.sources["num_labels"] == USER


@pytest.mark.parametrize("key", sorted(ALWAYS))
def test_what_the_user_says_wins_and_is_marked(key: str) -> None:
    other = {
        "attn_implementation": "eager", "expandable_segments": True, "gpus": 2, "gradient_accumulation_steps": 3,
        "keep_outputs": True, "loss": "chunked", "max_grad_norm": 0.5, "micro_batch_size": 5, "num_added_tokens": 7,
        "optim": "sgd", "packing": True, "padding": True, "sequence_length": 33, "stack": "unsloth",
        "torch_version": "2.12", "use_cache": True, "eval_strategy": "epoch",
    }[key]  # fmt: skip
    found = resolved(**{key: other})
    assert (found.values[key], found.sources[key]) == (other, USER)
    default = resolved()
    changed = {name for name in default.values if default.values[name] != found.values.get(name)}
    if key == "stack":  # which brings defaults of its own
        assert {name for name in changed if found.sources.get(name) == USER} == {key}
    else:
        assert changed == {key}


# -- precision, dtype, quantization -----------------------------------------------------------------------

Interplay = tuple[dict[str, Any], tuple[str, str, str | None]]
INTERPLAY: list[Interplay] = [
    ({}, ("fp32", "float32", None)),
    ({"dtype": "bf16"}, ("pure", "bfloat16", None)),
    ({"dtype": "torch.float16"}, ("pure", "float16", None)),
    ({"dtype": "float32"}, ("fp32", "float32", None)),
    ({"model": BF16_LLAMA}, ("pure", "bfloat16", None)),
    ({"model": FP16_LLAMA}, ("pure", "float16", None)),
    ({"model": BF16_LLAMA, "dtype": "float32"}, ("fp32", "float32", None)),
    ({"model": BF16_LLAMA, "precision": "fp32"}, ("fp32", "float32", None)),
    ({"precision": "pure"}, ("pure", "bfloat16", None)),
    ({"model": FP16_LLAMA, "precision": "pure"}, ("pure", "float16", None)),
    ({"precision": "master"}, ("master", "bfloat16", None)),
    ({"precision": "master-fp32-grads"}, ("master-fp32-grads", "bfloat16", None)),
    ({"precision": "amp"}, ("amp", "float32", "bfloat16")),
    # The Trainer's bf16=True on a 16-bit checkpoint: full fine-tuning keeps float32 weights, adapters the checkpoint's.
    ({"model": BF16_LLAMA, "precision": "amp"}, ("amp", "float32", "bfloat16")),
    ({"model": BF16_LLAMA, "precision": "amp", "method": "lora"}, ("amp", "bfloat16", "bfloat16")),
    ({"model": FP16_LLAMA, "precision": "amp", "method": "lora"}, ("amp", "float16", "float16")),
    ({"precision": "amp", "autocast_dtype": "float16"}, ("amp", "float32", "float16")),
    ({"precision": "amp", "gpu": "t4"}, ("amp", "float32", "float16")),
    ({"precision": "amp", "gpu": "v100-16gb"}, ("amp", "float32", "float16")),
    ({"precision": "amp", "gpu": "a100-40gb"}, ("amp", "float32", "bfloat16")),
    ({"precision": "amp", "gpu": "t4", "autocast_dtype": "bfloat16"}, ("amp", "float32", "bfloat16")),
    ({"method": "qlora"}, ("amp", "bfloat16", "bfloat16")),
    ({"method": "qlora", "gpu": "t4"}, ("amp", "bfloat16", "float16")),
    ({"method": "qlora", "dtype": "float16"}, ("amp", "float16", "float16")),
    ({"method": "qlora", "precision": "pure"}, ("pure", "bfloat16", None)),
    ({"method": "qlora", "precision": "fp32"}, ("fp32", "float32", None)),
    ({"method": "lora", "load_in_8bit": True}, ("amp", "bfloat16", "bfloat16")),
]


@pytest.mark.parametrize(("keys", "expected"), INTERPLAY)
def test_precision_dtype_and_autocast(keys: dict[str, Any], expected: tuple[str, str, str | None]) -> None:
    found = resolved(**keys)
    autocast = found.autocast.value if found.autocast else None
    assert (found.precision.value, found.dtype.value, autocast) == expected
    assert found.values["precision"] == found.precision
    assert found.values["dtype"] == found.dtype
    assert found.values.get("autocast_dtype") == autocast


QUANTIZATIONS: list[tuple[dict[str, Any], Quantization | None]] = [
    ({}, None),
    ({"method": "lora"}, None),
    (
        {"method": "qlora"},
        Quantization(Scheme.NF4, double_quant=True, quant_storage=DType.UINT8, compute_dtype=DType.BFLOAT16),
    ),
    (
        {"method": "lora", "load_in_4bit": True},
        Quantization(Scheme.FP4, double_quant=False, quant_storage=DType.UINT8, compute_dtype=DType.FLOAT32),
    ),
    (
        {"method": "qlora", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False,
         "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "bfloat16"},
        Quantization(Scheme.FP4, double_quant=False, quant_storage=DType.BFLOAT16, compute_dtype=DType.FLOAT32),
    ),
    (
        {"method": "qlora", "gpu": "t4"},
        Quantization(Scheme.NF4, double_quant=True, quant_storage=DType.UINT8, compute_dtype=DType.FLOAT16),
    ),
    ({"method": "lora", "load_in_8bit": True}, Quantization(Scheme.INT8)),
    ({"method": "qlora", "load_in_8bit": True}, Quantization(Scheme.INT8)),
    (
        {"method": "lora", "load_in_8bit": True, "llm_int8_skip_modules": ["score"]},
        Quantization(Scheme.INT8, skip_modules=("score",)),
    ),
    (
        {"method": "lora", "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}},
        Quantization(Scheme.GPTQ, bits=4, group_size=32),
    ),
    (
        {"method": "lora", "model": {**LLAMA, "quantization_config": {"quant_method": "awq"}}},
        Quantization(Scheme.AWQ, bits=4, group_size=128),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), QUANTIZATIONS)
def test_quantization(keys: dict[str, Any], expected: Quantization | None) -> None:
    assert resolved(**keys).quantization == expected


def test_a_quantization_config_says_what_the_flat_keys_say() -> None:
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_skip_modules": ["lm_head"],
    }
    given = resolved(method="lora", quantization_config=config)
    flat = resolved(
        method="lora",
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
        llm_int8_skip_modules=["lm_head"],
    )
    assert given.quantization == flat.quantization
    assert given.sources["quantization_config"] == USER


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_checkpoint_in_4_bits_says_its_compute_dtype(method: str) -> None:
    config = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    }  # fmt: skip
    found = resolved(method=method, model={**LLAMA, "quantization_config": config})
    assert found.quantization == Quantization(Scheme.NF4, compute_dtype=DType.BFLOAT16)
    assert "bnb_4bit_compute_dtype" not in found.values
    texts = unsupported_parts(found, prepare(found)).texts
    assert [text for text in texts if "quantized already" in text]  # no trace confirms how it arrives


def test_the_checkpoints_own_quantization_is_named_as_its_source() -> None:
    found = resolved(method="lora", model={**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert found.sources["quantization_config"] == "the checkpoint's config"
    assert found.quantization == Quantization(Scheme.FP8, block_shape=(128, 128), pre_quantized=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"load_in_8bit": True}, Quantization(Scheme.INT8)),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True}, Quantization(Scheme.INT8)),
        ({"load_in_4bit": True}, Quantization(Scheme.FP4, compute_dtype=DType.FLOAT32)),
        ({"quant_method": "GPTQ", "bits": 8}, Quantization(Scheme.GPTQ, bits=8, group_size=128)),
        (
            {"quant_method": "fp8", "weight_block_size": None, "modules_to_not_convert": ["lm_head"]},
            Quantization(Scheme.FP8, block_shape=None, skip_modules=("lm_head",), pre_quantized=True),
        ),
    ],
)
def test_quantization_configs_as_transformers_writes_them(config: dict[str, Any], expected: Quantization) -> None:
    assert quantization_of(config) == expected


def test_prepare_model_for_kbit_training_decides_checkpointing() -> None:
    assert resolved(method="qlora")["activation_checkpointing"] == "reentrant"
    assert resolved(method="qlora", prepare_model_for_kbit_training=False)["activation_checkpointing"] is False
    assert resolved(method="qlora", activation_checkpointing=False)["activation_checkpointing"] is False
    assert "prepare_model_for_kbit_training" not in resolved(method="lora").values


# -- method and adapter -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({"lora_r": 4}, {"r": 4}),
        ({"lora_dropout": 0.1}, {"lora_dropout": 0.1}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["q_proj", "v_proj"]}),
        ({"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ({"lora_r": 4, "target_modules": ["o_proj"]}, {"r": 4, "target_modules": ["o_proj"]}),
        ({"method": "prompt_tuning", "num_virtual_tokens": 5}, {"num_virtual_tokens": 5}),
    ],
)
def test_flat_keys_are_peft_keys(flat: dict[str, Any], nested: dict[str, Any]) -> None:
    method = flat.get("method", "lora")
    by_flat = resolved(**{"method": method, **flat})
    by_peft = resolved(method=method, peft=nested)
    assert by_flat.peft == by_peft.peft == nested
    assert by_flat.values == by_peft.values
    assert by_flat.sources["peft"] == USER


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert resolved(method="lora", lora_r=8, peft={"r": 8}).peft == {"r": 8}


def test_an_adapter_config_alone_names_the_method() -> None:
    found = resolved(peft={"peft_type": "IA3"})
    assert (found.method, found.sources["method"]) == ("ia3", "peft.peft_type")
    assert resolved(peft={"r": 8}).method == "lora"


def test_qlora_targets_every_linear_layer_unless_told() -> None:
    assert resolved(method="qlora").peft == {"target_modules": "all-linear"}
    assert resolved(method="qlora", target_modules=["q_proj"]).peft == {"target_modules": ["q_proj"]}
    assert resolved(method="lora").peft == {}


@pytest.mark.parametrize(
    ("keys", "task", "source"),
    [
        ({}, Task.CAUSAL_LM, "default of llama models"),
        (
            {"model": {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}},
            Task.SEQUENCE_CLASSIFICATION,
            "the config's architectures: LlamaForSequenceClassification",
        ),
        ({"peft": {"r": 8, "task_type": "TOKEN_CLS"}}, Task.TOKEN_CLASSIFICATION, "peft.task_type"),
        ({"peft": {"r": 8, "task_type": "SEQ_CLS"}, "task": "causal-lm"}, Task.CAUSAL_LM, USER),
        ({"model": "google-bert/bert-base-uncased"}, Task.MASKED_LM, "the config's architectures: BertForMaskedLM"),
        (
            {"model": "google-t5/t5-small"},
            Task.SEQ2SEQ_LM,
            "default of t5 models",
        ),
    ],
)
def test_task(keys: dict[str, Any], task: Task, source: str) -> None:
    found = resolved(**keys)
    assert (found.task, found.sources["task"]) == (task, source)


def test_labels_belong_to_classifiers() -> None:
    assert resolved(task="sequence-classification")["num_labels"] == 2
    assert resolved(task="sequence-classification", model={**LLAMA, "num_labels": 5})["num_labels"] == 5
    assert resolved(task="sequence-classification", num_labels=7).config["num_labels"] == 7
    assert "num_labels" not in resolved().values


def test_added_tokens_and_tying_change_the_config_and_not_the_models() -> None:
    found = resolved(num_added_tokens=5, tie_word_embeddings=True)
    assert (found.config["vocab_size"], found.config["tie_word_embeddings"]) == (102, True)
    assert (found.model.config["vocab_size"], found.model.config["tie_word_embeddings"]) == (97, False)
    assert LLAMA["vocab_size"] == 97


def test_names_are_written_as_the_catalog_writes_them() -> None:
    found = resolved(gpu="RTX-4090", method="prompt-tuning", num_virtual_tokens=3, dtype="torch.bfloat16")
    assert (found["gpu"], found["method"], found["dtype"]) == ("rtx-4090", "prompt_tuning", "bfloat16")


# -- contradictions ---------------------------------------------------------------------------------------

BITS4_CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CONTRADICTIONS: list[tuple[dict[str, Any], type[InputError], str]] = [
    ({"load_in_4bit": True, "load_in_8bit": True}, InputError, "load_in_4bit and load_in_8bit exclude each other"),
    (
        {"load_in_4bit": True, "quantization_config": BITS4_CONFIG},
        InputError,
        "quantization_config and load_in_4bit / load_in_8bit are two ways to say one thing: give one",
    ),
    (
        {"method": "qlora", "load_in_4bit": False},
        InvalidValueError,
        "load_in_4bit = False is not allowed: qlora stores the base in 4 bits; use method = lora",
    ),
    (
        {"precision": "fp32", "dtype": "bfloat16"},
        InvalidValueError,
        "dtype = 'bfloat16' is not allowed: precision fp32 needs float32 weights",
    ),
    *(
        (
            {"precision": precision, "dtype": "float32"},
            InvalidValueError,
            f"dtype = 'float32' is not allowed: precision {precision} needs bfloat16 or float16 weights",
        )
        for precision in (Precision.PURE, Precision.MASTER, Precision.MASTER_FP32_GRADS)
    ),
    (
        {"precision": "amp", "dtype": "int8"},
        InvalidValueError,
        "dtype = 'int8' is not allowed: base weights are loaded as float32, bfloat16 or float16",
    ),
    (
        {"autocast_dtype": "bfloat16"},
        InputError,
        "autocast_dtype is given, but only precision amp runs under autocast",
    ),
    (
        {"method": "lora", "lora_r": 8, "peft": {"r": 4}},
        InputError,
        "lora_r is given twice: 8 beside peft.r = 4\ngive it once",
    ),
    (
        {"method": "dora", "peft": {"use_dora": True, "peft_type": "LOHA"}},
        InputError,
        "method = 'dora' and peft.peft_type = 'LOHA' disagree\ndora has PEFT type LORA; give one of the two",
    ),
    (
        {"quantization_config": {"quant_method": "aqlm"}},
        InvalidValueError,
        "quantization_config = {'quant_method': 'aqlm'} is not allowed: quant_method must be bitsandbytes, gptq, awq "
        "or fp8",
    ),
    (
        {"method": "prefix_tuning", "num_virtual_tokens": 3, "activation_checkpointing": True},
        InvalidValueError,
        "activation_checkpointing = True is not allowed: only false: PEFT refuses prefix_tuning, which lives in the "
        "key/value cache, on a checkpointed model",
    ),
    (
        {"task": "seq2seq-lm"},
        InvalidValueError,
        "task = 'seq2seq-lm' is not allowed: llama models have: causal-lm, sequence-classification, "
        "token-classification, feature-extraction",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "kind", "message"), CONTRADICTIONS)
def test_contradictions(keys: dict[str, Any], kind: type[InputError], message: str) -> None:
    with pytest.raises(kind) as caught:
        resolved(**keys)
    assert str(caught.value) == message


BITS4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    "keys",
    [
        *({"quantization_config": {**BITS4, "llm_int8_skip_modules": value}} for value in (5, [5], ["("])),
        *({"quantization_config": {**BITS4, "bnb_4bit_quant_type": value}} for value in ("q", None, 5)),
        {"quantization_config": {**BITS4, "bnb_4bit_compute_dtype": 5}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": 5}},
        {"quantization_config": {"quant_method": "gptq", "bits": "4"}},
        {"model": {**LLAMA, "quantization_config": -1}},
        {"model": {**LLAMA, "quantization_config": ["a"]}},
        *({"peft": {"rank_pattern": value}} for value in ([1], {"(": 3}, {"q_proj": "x"})),
        {"peft": {"task_type": ["a"]}},
        {"peft": {"lora_dropout": "x"}},
        *({"peft": {"target_parameters": value}} for value in (5, [5])),
        {"load_in_4bit": True, "llm_int8_skip_modules": ["("]},
    ],
)
def test_nested_values_of_the_wrong_kind_are_named(keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"^(quantization_config|peft|llm_int8_skip_modules)"):
        resolved(**{"method": "lora", **keys})


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"num_labels": 3}, "a causal-lm head has no labels"),
        ({"autocast_adapter_dtype": False}, "method full has no PEFT adapter"),
        ({"bnb_4bit_quant_type": "nf4"}, "base weights are not in bitsandbytes' 4 bits: say load_in_4bit"),
        ({"prepare_model_for_kbit_training": True}, "it prepares a quantized base for an adapter; method is full"),
        (
            {"llm_int8_skip_modules": ["lm_head"]},
            "nothing is quantized by bitsandbytes: say load_in_4bit or load_in_8bit",
        ),
    ],
)
def test_keys_that_change_nothing_are_refused(keys: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError) as caught:
        resolved(**keys)
    assert str(caught.value) == f"{next(iter(keys))} is given, but nothing in this recipe uses it\n{hint}"


@pytest.mark.parametrize("method", ["full", "bitfit"])
@pytest.mark.parametrize(
    "keys", [{"load_in_4bit": True}, {"load_in_8bit": True}, {"quantization_config": {"quant_method": "gptq"}}]
)
def test_quantized_weights_are_not_trained(method: str, keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="weights are trained through an adapter only"):
        resolved(method=method, **keys)


@pytest.mark.parametrize("keys", [{"lora_r": 8}, {"target_modules": ["q_proj"]}, {"num_virtual_tokens": 3}])
@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_adapter_keys_need_an_adapter(keys: dict[str, Any], method: str) -> None:
    with pytest.raises(InputError, match=f"is given, but method '{method}' is not a PEFT method"):
        resolved(method=method, **keys)


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"model": "mistral-7b-v9"}, "unknown model 'mistral-7b-v9'\ndid you mean "),
    ({"model": {**LLAMA, "model_type": "lama"}}, "unknown model_type 'lama'\ndid you mean llama"),
    ({"method": "loraa"}, "unknown method 'loraa'\ndid you mean lora"),
    ({"gpu": "rtx-4091"}, "unknown GPU 'rtx-4091'\ndid you mean rtx-4090"),
    ({"dtype": "bfloat61"}, "unknown dtype 'bfloat61'\ndid you mean bfloat16"),
    ({"method": "qlora", "bnb_4bit_compute_dtype": "fp23"}, "unknown dtype 'fp23'\ndid you mean fp32"),
    ({"method": "qlora", "bnb_4bit_quant_storage": "uint4"}, "unknown dtype 'uint4'\ndid you mean "),
]


@pytest.mark.parametrize(("keys", "message"), UNKNOWN)
def test_unknown_names_and_what_was_meant(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolved(**keys)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_paths_are_refused_where_the_text_comes_from_the_network(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    recipe = Recipe(model=str(tmp_path))
    assert resolve(recipe).model.source == "file"
    with pytest.raises(UnknownNameError, match="unknown model"):
        resolve(recipe, allow_paths=False)


@pytest.mark.parametrize("keys", [{}, {"method": "qlora"}, {"method": "lora", "lora_r": 4}])
def test_a_resolved_recipe_resolves_to_itself(keys: dict[str, Any]) -> None:
    first = resolved(**keys)
    again = resolve(Recipe(**first.values))
    assert again.values == first.values
    assert (again.config, again.quantization, again.peft) == (first.config, first.quantization, first.peft)


@pytest.mark.parametrize("stack", [None, "transformers"])
def test_a_version_of_no_stack_is_refused(stack: str | None) -> None:
    with pytest.raises(InvalidValueError, match="only beside another stack"):
        resolve(Recipe(model="gpt2", stack=stack, stack_version="4.0"))
