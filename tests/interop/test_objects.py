"""Objects of the real libraries, and objects that only look like them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import memplan
from memplan import interop
from memplan.errors import InputError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
}


def arguments(tmp_path: Any, **keys: Any) -> Any:
    return transformers.TrainingArguments(str(tmp_path), report_to=[], **keys)


def test_the_defaults_of_training_arguments_are_all_known(tmp_path: Any) -> None:
    reading = interop.read_objects(model_config="gpt2", training_args=arguments(tmp_path))
    assert reading.unknown_memory_like == ()
    assert reading.unsupported == ()
    recipe = reading.recipe_with(sequence_length=8)
    assert (recipe.micro_batch_size, recipe.optim, recipe.max_grad_norm) == (8, "adamw_torch_fused", 1.0)
    assert (recipe.activation_checkpointing, recipe.dtype, recipe.precision) == (False, "auto", None)


def test_a_lora_run_on_a_real_config(tmp_path: Any) -> None:
    recipe = memplan.Recipe.from_objects(
        model_config=transformers.LlamaConfig(**SIZES, dtype="bfloat16"),
        training_args=arguments(
            tmp_path, per_device_train_batch_size=2, fp16=False, gradient_checkpointing=True, optim="adamw_bnb_8bit"
        ),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
        sequence_length=16,
    )
    assert recipe.peft is not None
    assert (recipe.peft["r"], sorted(recipe.peft["target_modules"])) == (4, ["q_proj", "v_proj"])
    assert (recipe.activation_checkpointing, recipe.optim) == ("non-reentrant", "adamw_bnb_8bit")
    answer = memplan.estimate(recipe)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES)),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
    )
    trainable, total = model.get_nb_trainable_parameters()
    assert (answer.parameters.trainable, answer.parameters.total) == (trainable, total)
    assert (answer.recipe["dtype"], answer.recipe["precision"]) == ("bfloat16", "pure")


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
        lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
        lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    ],
)
def test_peft_configs_count_as_peft_counts(config: Any) -> None:
    base = transformers.LlamaConfig(**SIZES)
    reading = interop.read_objects(model_config=base, peft_config=config())
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(base), config())
    assert memplan.model_states(reading.recipe_with()).parameters.trainable == model.get_nb_trainable_parameters()[0]


def test_bitsandbytes(tmp_path: Any) -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    reading = interop.read_objects(model_config="gpt2", quantization_config=config)
    keys = dict(reading.keys)
    assert keys["load_in_4bit"] is True
    assert (keys["bnb_4bit_compute_dtype"], keys["bnb_4bit_quant_type"]) == ("bfloat16", "fp4")
    assert keys["bnb_4bit_use_double_quant"] is False
    int8 = interop.read_objects(
        model_config="gpt2", quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    assert [key for key in int8.keys if key.startswith("bnb_4bit")] == []


def test_parallelism_of_an_object_is_reported(tmp_path: Any) -> None:
    args = SimpleNamespace(per_device_train_batch_size=2, fsdp="full_shard", world_size=4, n_gpu=1, bf16=True)
    reading = interop.read_objects(model_config="gpt2", training_args=args)
    assert reading.keys["gpus"] == 4
    assert [text.partition(": ")[2] for text in reading.unsupported] == ["FSDP (fsdp = full_shard)", "4 processes"]


def test_plain_objects_are_enough() -> None:
    config = SimpleNamespace(model_type="llama", **SIZES, torch_dtype="bfloat16")
    args = SimpleNamespace(per_device_train_batch_size=2, bf16=True, gradient_accumulation_steps=4)
    reading = interop.read_objects(model_config=config, training_args=args)
    assert memplan.estimate(reading.recipe_with(sequence_length=16)).recipe["dtype"] == "bfloat16"
    assert reading.keys["gradient_accumulation_steps"] == 4


def test_no_library_is_imported() -> None:
    code = """
import sys
from types import SimpleNamespace
import memplan
args = SimpleNamespace(per_device_train_batch_size=2, bf16=True)
memplan.Recipe.from_objects(model_config={"model_type": "gpt2"}, training_args=args, peft_config={"peft_type": "LORA"})
print(*(name for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "yaml") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_what_is_no_config_is_refused() -> None:
    for keys, words in (
        ({}, "no object is given"),
        ({"model_config": {"a": 1}}, "no model_type"),
        ({"model_config": "gpt2", "peft_config": {"r": 4}}, "no peft_type"),
        ({"training_args": {"per_device_train_batch_size": 2}}, "no model is named"),
        ({"model_config": "gpt2", "training_args": 3}, "no attributes to read"),
    ):
        with pytest.raises(InputError, match=words):
            memplan.Recipe.from_objects(**keys)  # type: ignore[arg-type]
