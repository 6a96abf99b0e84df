"""Example configs as the frameworks ship or document them (re-typed; sources in the files), compared field by field.

Sources of the files that cannot hold a comment: transformers_args.json and transformers_galore.json follow the examples of
transformers' documentation of Trainer and GaLore, deepspeed_zero3_auto.json LLaMA-Factory's ds_z3_config.json,
deepspeed_zero2_offload.json DeepSpeed's tutorial of ZeRO-Offload, adapter_config*.json and bnb_*.json what PEFT 0.21 and
transformers 5.23 write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan import interop
from memplan.estimate import Fits

EXAMPLES = Path(__file__).parent / "examples"

# File to: format, recipe keys, texts of what is unsupported, why the sequence length must be given.
EXPECTED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "accelerate_fsdp2.yaml": (
        "accelerate",
        {"precision": "amp", "autocast_dtype": "bfloat16", "gpus": 8},
        ("accelerate_fsdp2.yaml:4: FSDP 2",),
        "",
    ),
    "accelerate_single_gpu.yaml": ("accelerate", {"precision": "amp", "autocast_dtype": "bfloat16"}, (), ""),
    "accelerate_zero3.yaml": (
        "accelerate",
        {"dtype": "bfloat16", "precision": "master", "gpus": 8},
        ("accelerate_zero3.yaml:10: ZeRO stage 3",),
        "",
    ),
    "adapter_config.json": (
        "peft",
        {
            "model": "mistralai/Mistral-7B-v0.1",
            "peft": {
                "alpha_pattern": {},
                "bias": "none",
                "fan_in_fan_out": False,
                "init_lora_weights": True,
                "lora_alpha": 16,
                "lora_dropout": 0.1,
                "peft_type": "LORA",
                "r": 64,
                "rank_pattern": {},
                "target_modules": ["q_proj", "v_proj"],
                "task_type": "CAUSAL_LM",
                "use_dora": False,
                "use_rslora": False,
            },
        },
        (),
        "",
    ),
    "adapter_config_ia3.json": (
        "peft",
        {
            "model": "meta-llama/Llama-3.2-1B",
            "peft": {
                "peft_type": "IA3",
                "feedforward_modules": ["down_proj"],
                "target_modules": ["k_proj", "v_proj", "down_proj"],
                "task_type": "CAUSAL_LM",
            },
        },
        (),
        "",
    ),
    "axolotl_full_fsdp.yaml": (
        "axolotl",
        {
            "model": "meta-llama/Llama-3.1-8B",
            "dtype": "bfloat16",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 4,
            "micro_batch_size": 2,
            "sequence_length": 4096,
            "packing": True,
            "activation_checkpointing": "non-reentrant",
            "attn_implementation": "flash_attention_2",
            "loss": "fused_linear",
            "stack": "liger",
            "eval_strategy": "steps",
            "per_device_eval_batch_size": 2,
            "eval_accumulation_steps": 4,
        },
        (
            "axolotl_full_fsdp.yaml:42: an evaluation before the first step, of which the steps find what it leaves in "
            "the allocator's cache",
            "axolotl_full_fsdp.yaml:45: FSDP",
            "axolotl_full_fsdp.yaml:48: FSDP",
        ),
        "",
    ),
    "axolotl_qlora_1b.yaml": (
        "axolotl",
        {
            "model": "meta-llama/Llama-3.2-1B",
            "peft": {
                "peft_type": "LORA",
                "r": 32,
                "lora_dropout": 0.05,
                "target_modules": ["gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj"],
            },
            "prepare_model_for_kbit_training": False,
            "dtype": "bfloat16",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "bfloat16",
            "optim": "adamw_8bit",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 4,
            "micro_batch_size": 2,
            "sequence_length": 2048,
            "packing": True,
            "activation_checkpointing": "non-reentrant",
            "attn_implementation": "flash_attention_2",
            "eval_strategy": "steps",
            "per_device_eval_batch_size": 2,
            "eval_accumulation_steps": 4,
        },
        (
            "axolotl_qlora_1b.yaml:58: an evaluation before the first step, of which the steps find what it leaves in "
            "the allocator's cache",
        ),
        "",
    ),
    "bnb_int8_offload.json": (
        "bitsandbytes",
        {"load_in_8bit": True},
        ("bnb_int8_offload.json:3: parts of the model offloaded to the CPU",),
        "",
    ),
    "bnb_nf4.json": (
        "bitsandbytes",
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head"],
        },
        (),
        "",
    ),
    "config_tiny_llama.json": (
        "model-config",
        {
            "model": {
                "architectures": ["LlamaForCausalLM"],
                "hidden_act": "silu",
                "hidden_size": 64,
                "intermediate_size": 128,
                "max_position_embeddings": 512,
                "model_type": "llama",
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-05,
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
                "transformers_version": "4.56.0",
                "vocab_size": 1000,
            }
        },
        (),
        "",
    ),
    "config_tiny_llama_nf4.json": (
        "model-config",
        {
            "model": {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 64,
                "intermediate_size": 128,
                "model_type": "llama",
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
                "torch_dtype": "float16",
                "vocab_size": 1000,
                "quantization_config": {
                    "load_in_4bit": True,
                    "quant_method": "bitsandbytes",
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_compute_dtype": "float16",
                },
            }
        },
        (),
        "",
    ),
    "deepspeed_zero2_offload.json": (
        "deepspeed",
        {
            "dtype": "float16",
            "precision": "master",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 1,
            "micro_batch_size": 4,
            "gpus": 8,
        },
        (
            "deepspeed_zero2_offload.json:12: ZeRO stage 2",
            "deepspeed_zero2_offload.json:13: optimizer offloaded to cpu",
        ),
        "",
    ),
    "deepspeed_zero3_auto.json": ("deepspeed", {}, ("deepspeed_zero3_auto.json:10: ZeRO stage 3",), ""),
    "llamafactory_full_ds3.yaml": (
        "llamafactory",
        {
            "model": "meta-llama/Meta-Llama-3-8B",
            "method": "full",
            "dtype": "float32",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 2,
            "micro_batch_size": 1,
            "sequence_length": 2048,
            "activation_checkpointing": "reentrant",
        },
        ("llamafactory_full_ds3.yaml:9: DeepSpeed (examples/deepspeed/ds_z3_config.json)",),
        "",
    ),
    "llamafactory_lora_sft.yaml": (
        "llamafactory",
        {
            "model": "meta-llama/Meta-Llama-3-8B",
            "peft": {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"},
            "dtype": "bfloat16",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 8,
            "micro_batch_size": 1,
            "sequence_length": 2048,
            "activation_checkpointing": "reentrant",
        },
        (),
        "",
    ),
    "torchtitan_llama3_8b.toml": (
        "torchtitan",
        {
            "model": "meta-llama/Llama-3.1-8B",
            "method": "full",
            "dtype": "float32",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "micro_batch_size": 1,
            "sequence_length": 8192,
        },
        (
            "torchtitan_llama3_8b.toml:18: torchtitan's own llama3 8B: the step is walked as transformers runs it",
            "torchtitan_llama3_8b.toml:38: FSDP over as many GPUs as there are",
            "torchtitan_llama3_8b.toml:56: selective checkpointing (op)",
        ),
        "",
    ),
    "torchtitan_old_70b.toml": (
        "torchtitan",
        {
            "model": "meta-llama/Llama-3.1-70B",
            "method": "full",
            "dtype": "float32",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch",
            "max_grad_norm": 1.0,
            "micro_batch_size": 8,
            "sequence_length": 8192,
            "activation_checkpointing": "non-reentrant",
            "gpus": 256,
        },
        (
            "torchtitan_old_70b.toml:7: torchtitan's own llama3 70B: the step is walked as transformers runs it",
            "torchtitan_old_70b.toml:23: FSDP over 32 GPUs",
            "torchtitan_old_70b.toml:24: tensor parallelism over 8 GPUs",
        ),
        "",
    ),
    "torchtune_full_8b.yaml": (
        "torchtune",
        {
            "model": "meta-llama/Llama-3.1-8B",
            "method": "full",
            "dtype": "bfloat16",
            "precision": "pure",
            "optim": "paged_adamw_8bit",
            "optimizer_in_backward": True,
            "max_grad_norm": 0.0,
            "gradient_accumulation_steps": 1,
            "micro_batch_size": 2,
            "packing": False,
            "activation_checkpointing": "non-reentrant",
            "loss": "chunked",
            "stack": "torchtune",
            "stack_version": "0.6.1",
        },
        (),
        "torchtune_full_8b.yaml:6: max_seq_len = null cuts no sequence: the longest one "
        "decides, give its sequence_length",
    ),
    "torchtune_lora_8b.yaml": (
        "torchtune",
        {
            "model": "meta-llama/Llama-3.1-8B",
            "peft": {
                "peft_type": "LORA",
                "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                "r": 8,
                "lora_dropout": 0.0,
            },
            "autocast_adapter_dtype": False,
            "dtype": "bfloat16",
            "precision": "pure",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 0.0,
            "gradient_accumulation_steps": 8,
            "micro_batch_size": 2,
            "sequence_length": 4096,
            "packing": False,
            "activation_checkpointing": "non-reentrant",
            "loss": "chunked",
            "stack": "torchtune",
            "stack_version": "0.6.1",
        },
        (),
        "",
    ),
    "transformers_args.json": (
        "transformers",
        {
            "dtype": "auto",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 2,
            "micro_batch_size": 16,
            "padding": True,
            "activation_checkpointing": "reentrant",
            "eval_strategy": "epoch",
            "per_device_eval_batch_size": 16,
        },
        (),
        "no file says how long sequences are: the longest one decides, give its sequence_length",
    ),
    "transformers_galore.json": (
        "transformers",
        {
            "dtype": "auto",
            "optim": "galore_adamw",
            "optim_args": {"rank": 64, "update_proj_gap": 100, "scale": 0.1},
            "optim_target_modules": ["attn", "mlp"],
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 1,
            "micro_batch_size": 2,
            "padding": True,
            "activation_checkpointing": False,
        },
        (
            "transformers_galore.json:8: torch.compile, which fuses kernels and keeps other tensors",
            "transformers_galore.json:9: FSDP (fsdp = full_shard auto_wrap)",
        ),
        "no file says how long sequences are: the longest one decides, give its sequence_length",
    ),
    "trl_qlora.yaml": (
        "trl",
        {
            "model": "Qwen/Qwen2-0.5B",
            "peft": {"peft_type": "LORA", "r": 32, "lora_dropout": 0.05, "target_modules": "all-linear"},
            "autocast_adapter_dtype": False,
            "prepare_model_for_kbit_training": False,
            "dtype": "bfloat16",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 8,
            "micro_batch_size": 2,
            "sequence_length": 2048,
            "packing": True,
            "activation_checkpointing": "non-reentrant",
            "loss": "chunked",
            "stack": "trl",
            "stack_version": "1.16.0",
            "eval_strategy": "steps",
            "per_device_eval_batch_size": 2,
        },
        (),
        "",
    ),
    "trl_sft.yaml": (
        "trl",
        {
            "model": "Qwen/Qwen2.5-0.5B",
            "dtype": "float32",
            "precision": "amp",
            "autocast_dtype": "bfloat16",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 1,
            "micro_batch_size": 8,
            "sequence_length": 1024,
            "padding": True,
            "packing": False,
            "activation_checkpointing": "non-reentrant",
            "loss": "chunked",
            "stack": "trl",
            "stack_version": "1.16.0",
        },
        (),
        "",
    ),
}


@pytest.fixture(autouse=True)
def _inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)


def test_every_example_is_expected_and_every_format_has_two() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted(EXPECTED)
    counts = {name: [entry[0] for entry in EXPECTED.values()].count(name) for name in interop.format_names()}
    assert {name for name, count in counts.items() if count < 2} == {"recipe"}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example(name: str) -> None:
    reading = interop.read(name)
    assert (reading.format, dict(reading.keys), reading.unsupported, reading.open_length) == EXPECTED[name]
    assert reading.unknown_memory_like == ()


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_key_is_accounted_for_with_its_line(name: str) -> None:
    reading = interop.read(name)
    lines = Path(name).read_text().splitlines()
    for entry in reading.used:
        leaf = entry.key.rpartition(".")[2]
        assert leaf in lines[entry.line - 1], entry
    for default in reading.defaults:
        assert default.source
        assert default.version_range


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_recipe_resolves_and_is_never_more_sure_than_the_file(name: str) -> None:
    reading = interop.read(name)
    changes = {} if "model" in reading.keys else {"model": "meta-llama/Llama-3.2-1B"}
    if reading.open_length:
        changes["sequence_length"] = 128
    if "load_in_4bit" in str(reading.keys) or "load_in_8bit" in str(reading.keys):
        changes.setdefault("peft", reading.keys.get("peft", {"peft_type": "LORA"}))
    answer = reading.estimate(**changes, gpu="b200")
    assert set(reading.unsupported) <= set(answer.unsupported)
    assert answer.verdict_report is not None
    if reading.unsupported:
        assert answer.verdict_report.fits is not Fits.FITS


def test_parallelism_is_never_ignored() -> None:
    parallel = [name for name in EXPECTED if any(word in name for word in ("fsdp", "zero", "ds3", "titan", "galore"))]
    assert len(parallel) == 9
    for name in parallel:
        texts = " ".join(interop.read(name).unsupported)
        assert any(word in texts for word in ("FSDP", "ZeRO", "DeepSpeed")), name


def test_an_open_length_is_reported_until_it_is_given() -> None:
    reading = interop.read("transformers_args.json")
    assert any("sequence_length" in text for text in reading.recipe_with(model="gpt2").uncovered)
    assert reading.recipe_with(model="gpt2", sequence_length=64).uncovered == ()


def test_from_file_is_the_same_recipe() -> None:
    assert memplan.Recipe.from_file("axolotl_qlora_1b.yaml") == interop.read("axolotl_qlora_1b.yaml").recipe
    recipe = memplan.Recipe.from_file("torchtitan_old_70b.toml", format="torchtitan")
    assert recipe.gpus == 256
    assert len(recipe.uncovered) == 3
