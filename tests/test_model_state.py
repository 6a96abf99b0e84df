"""Parameters, gradients and optimizer states against what Trainer, PEFT and bitsandbytes hold after one real step.

Every case builds the real model on the CPU, lets `transformers.Trainer` make the optimizer, runs one forward, backward
and `optimizer.step()`, and compares tensor for tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft
    from bitsandbytes.nn import Linear4bit, Params4bit
    from bitsandbytes.optim import GlobalOptimManager

from memplan.dtypes import DType, parse_dtype
from memplan.estimate import Component
from memplan.model_state import ModelState, StoredParameter, has_weight_decay, in_registration_order
from memplan.optimizers import ParamInfo
from memplan.prepare import Prepared
from memplan.prepare import prepare as prepare_resolved
from memplan.recipe import Recipe, Task
from memplan.resolve import resolve
from memplan.units import round_to_block
from tests.methods.matrix import base_name, build_model, peft_config, strip_prefix

DECODER: dict[str, Any] = {
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 131,
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
GPT = {"n_embd": 72, "n_layer": 2, "n_head": 4, "vocab_size": 131}

# No two sizes are alike; linear layers on both sides of 4096 elements, where states of 8 bits begin.
FAMILIES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "llama": ({**GROUPED, "model_type": "llama", "tie_word_embeddings": False}, "causal-lm", ["q_proj", "v_proj"]),
    "qwen2": ({**GROUPED, "model_type": "qwen2", "tie_word_embeddings": True}, "causal-lm", ["k_proj", "up_proj"]),
    "gemma": ({**GROUPED, "model_type": "gemma", "head_dim": 14}, "causal-lm", ["o_proj"]),
    "mixtral": ({**GROUPED, "model_type": "mixtral", "num_local_experts": 3}, "causal-lm", ["q_proj"]),
    "gpt2": ({**GPT, "model_type": "gpt2", "n_positions": 33}, "causal-lm", ["c_attn", "c_proj"]),
    "gpt_neox": ({**DECODER, "model_type": "gpt_neox"}, "causal-lm", ["query_key_value"]),
    "opt": (
        {**DECODER, "model_type": "opt", "ffn_dim": 136, "word_embed_proj_dim": 40, "max_position_embeddings": 33},
        "causal-lm",
        ["fc1"],
    ),
    "bloom": ({"model_type": "bloom", "hidden_size": 72, "n_layer": 2, "n_head": 4, "vocab_size": 131}, "causal-lm",
              ["dense"]),
    "falcon": ({**DECODER, "model_type": "falcon"}, "causal-lm", ["query_key_value"]),
    "bert": ({**DECODER, "model_type": "bert", "max_position_embeddings": 33}, "masked-lm", ["query"]),
    "distilbert": (
        {"model_type": "distilbert", "dim": 72, "hidden_dim": 136, "n_layers": 2, "n_heads": 4, "vocab_size": 131,
         "max_position_embeddings": 33},
        "sequence-classification",
        ["q_lin", "v_lin"],
    ),
    "t5": (
        {"model_type": "t5", "d_model": 72, "d_kv": 14, "d_ff": 136, "num_layers": 2, "num_heads": 4,
         "vocab_size": 131, "decoder_start_token_id": 0, "pad_token_id": 0},
        "seq2seq-lm",
        ["q", "v"],
    ),
    "bart": (
        {"model_type": "bart", "d_model": 72, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 136, "decoder_ffn_dim": 152, "vocab_size": 131,
         "max_position_embeddings": 33},
        "seq2seq-lm",
        ["fc2"],
    ),
    "vit": ({**DECODER, "model_type": "vit", "image_size": 16, "patch_size": 4}, "image-classification", ["q_proj"]),
}  # fmt: skip
MODES = ("float32", "bfloat16", "lora")
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_torch": ("adamw_torch", {}),
    "adamw_torch_fused": ("adamw_torch_fused", {}),
    "sgd": ("sgd", {}),
    "sgd-momentum": ("sgd", {"momentum": 0.9}),
    "adafactor": ("adafactor", {}),
    "adagrad": ("adagrad", {}),
    "rmsprop": ("rmsprop", {}),
    "rmsprop-centered": ("rmsprop", {"momentum": 0.9, "centered": True}),
    "adamw_bnb_8bit": ("adamw_bnb_8bit", {}),
    "lion_8bit": ("lion_8bit", {}),
}

Facts = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class Held:
    """What is in memory after a step, by parameter.

    Attributes:
        parameters: shape, dtype and bytes of each.
        gradients: bytes of those that have one.
        states: shape and dtype of each tensor of the optimizer's state.
        groups: names of the optimizer's two groups, in order.
    """

    parameters: dict[str, tuple[Facts, int]]
    gradients: dict[str, int]
    states: dict[str, dict[str, Facts]]
    groups: tuple[list[str], list[str]]


@pytest.fixture(autouse=True)
def fresh_manager() -> Iterator[None]:
    """bitsandbytes keeps the embeddings' override in a singleton, by `id` of the parameter."""
    GlobalOptimManager.get_instance().initialize()
    yield
    GlobalOptimManager.get_instance().initialize()


def recipe_of(family: str, mode: str, optimizer: str) -> Recipe:
    config, task, targets = FAMILIES[family]
    name, arguments = OPTIMIZERS[optimizer]
    keys: dict[str, Any] = {"method": "lora", "peft": {"r": 3, "target_modules": targets}} if mode == "lora" else {}
    return Recipe(
        model=config,
        task=task,
        dtype="bfloat16" if mode == "lora" else mode,
        optim=name,
        optim_args=arguments or None,
        **keys,
    )


def real_model(recipe: Recipe) -> Any:
    """The real model of a recipe, wrapped by PEFT where it names an adapter."""
    assert isinstance(recipe.model, dict)
    assert recipe.task is not None
    assert recipe.dtype is not None
    model = build_model(recipe.model, recipe.task.value, dtype=DType(recipe.dtype), device="cpu")
    if recipe.method is None:
        return model
    assert recipe.peft is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecated name that PEFT reads, and GPT-2's transposed layers
        return peft.get_peft_model(model, peft_config("LORA", recipe.peft, recipe.task.value))


def batch_of(task: str) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 131, (2, 7), generator=torch.Generator().manual_seed(0))
    if task == "image-classification":
        return {"pixel_values": torch.ones(2, 3, 16, 16), "labels": tokens[:, 0] % 2}
    return {"input_ids": tokens, "labels": tokens[:, 0] % 2 if task == "sequence-classification" else tokens}


def one_step(model: Any, task: str, optim: str, arguments: dict[str, Any], directory: Path) -> torch.optim.Optimizer:
    """Forward, backward and step, with the optimizer that Trainer makes."""
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    args = transformers.TrainingArguments(
        output_dir=str(directory), optim=optim, optim_args=text or None, use_cpu=True, report_to=[]
    )
    optimizer: torch.optim.Optimizer = transformers.Trainer(model=model, args=args).create_optimizer()
    model.train()
    batch = batch_of(task)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(next(model.parameters()).dtype)
    model(**batch).loss.backward()
    optimizer.step()
    return optimizer


def observe(model: Any, optimizer: torch.optim.Optimizer, bases: set[str]) -> Held:
    """What the real objects hold."""
    names = {}
    for full, parameter in model.named_parameters():
        name = strip_prefix(full)
        names[parameter] = base_name(name, bases) or name
    assert len(set(names.values())) == len(names)
    decay, rest = ([names[parameter] for parameter in group["params"]] for group in optimizer.param_groups)
    return Held(
        parameters={name: (facts(parameter), nbytes(parameter)) for parameter, name in names.items()},
        gradients={name: nbytes(parameter.grad) for parameter, name in names.items() if parameter.grad is not None},
        states={
            names[parameter]: tensors
            for parameter, state in optimizer.state.items()
            if (tensors := {key: facts(value) for key, value in state.items() if isinstance(value, torch.Tensor)})
        },
        groups=(decay, rest),
    )


def facts(tensor: torch.Tensor) -> Facts:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def predict(prepared: Prepared) -> Held:
    """The same from memplan."""
    state = prepared.state
    trained = by_name(prepared)
    return Held(
        parameters={entry.name: ((entry.shape, str(entry.dtype)), exact_bytes(entry)) for entry in state.stored},
        gradients={
            name: param.elements * state.policy.gradient_dtype(param.dtype).itemsize_bytes
            for name, param in trained.items()
        },
        states={
            name: {tensor.name: (tensor.shape, str(tensor.dtype)) for tensor in tensors}
            for name, param in trained.items()
            if (tensors := prepared.optimizer.state_tensors(param))
        },
        groups=group_names(prepared),
    )


def exact_bytes(entry: StoredParameter) -> int:
    size = entry.elements * entry.dtype.itemsize_bytes
    assert (entry.data_bytes, entry.state_bytes) == (round_to_block(size), 0)
    return size


def grouped(prepared: Prepared) -> tuple[list[StoredParameter], list[StoredParameter]]:
    ordered = in_registration_order(prepared.state.stored, prepared.architecture)
    trained = [entry for entry in ordered if entry.trainable]
    decays = [has_weight_decay(entry, prepared.architecture) for entry in trained]
    return (
        [entry for entry, decay in zip(trained, decays, strict=True) if decay],
        [entry for entry, decay in zip(trained, decays, strict=True) if not decay],
    )


def group_names(prepared: Prepared) -> tuple[list[str], list[str]]:
    decay, rest = ([entry.name for entry in group] for group in grouped(prepared))
    return decay, rest


def by_name(prepared: Prepared) -> dict[str, ParamInfo]:
    """What the optimizer is told of each trained parameter, by the parameter's name."""
    found = {}
    for entries, params in zip(grouped(prepared), prepared.state.trained, strict=True):
        for entry, param in zip(entries, params, strict=True):
            assert param.shape == entry.shape
            found[entry.name] = param
    return found


def prepare(recipe: Recipe) -> Prepared:
    return prepare_resolved(resolve(recipe))


def state_bytes(held: Held) -> int:
    """Bytes of observed states rounded per tensor; code books are one for all parameters."""
    tensors = [(name, key) for name, held_by in held.states.items() for key in held_by]
    shared = {key: (name, key) for name, key in tensors if key.startswith("qmap")}
    own = [(name, key) for name, key in tensors if not key.startswith("qmap")]
    return sum(round_to_block(size_of(held.states[name][key])) for name, key in [*own, *shared.values()])


def size_of(tensor: Facts) -> int:
    shape, dtype = tensor
    return torch.Size(shape).numel() * parse_dtype(dtype).itemsize_bytes


def assert_totals(state: ModelState, real: Held) -> None:
    """Fail unless the sums are those of the real tensors, each rounded to the allocator's blocks."""
    assert state.gradients_bytes == sum(map(round_to_block, real.gradients.values()))
    on_cpu_too = state.states.host_bytes  # tensors that a GPU run keeps in host memory are exact, not rounded
    assert not on_cpu_too or on_cpu_too == 4 * len(real.states)
    host = {"step"} if on_cpu_too else set()
    on_device = {name: {k: v for k, v in held.items() if k not in host} for name, held in real.states.items()}
    assert state.states.device_bytes == state_bytes(replace(real, states=on_device))
    loaded = sum(size for component, size in state.loaded.items() if component is not Component.BUFFERS)
    assert loaded == sum(round_to_block(size) for _, size in real.parameters.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_held_after_one_step(family: str, optimizer: str, mode: str, tmp_path: Path) -> None:
    recipe = recipe_of(family, mode, optimizer)
    model = real_model(recipe)
    prepared = prepare(recipe)
    real_optimizer = one_step(model, FAMILIES[family][1], *OPTIMIZERS[optimizer], tmp_path)
    bases = {name for name, _, _ in prepared.architecture.named_parameters()}
    real, ours = observe(model, real_optimizer, bases), predict(prepared)
    assert ours.parameters == real.parameters
    assert ours.gradients == real.gradients
    assert ours.groups == real.groups
    assert ours.states == real.states
    assert_totals(prepared.state, real)


# -- quantized bases --------------------------------------------------------------------------------------

CLASSIC = {
    "r": 8, "lora_alpha": 32, "target_modules": ["q_lin", "v_lin"], "lora_dropout": 0.05, "bias": "none",
    "task_type": "SEQ_CLS",
}  # fmt: skip
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-all-linear": ("llama", {"r": 4, "target_modules": "all-linear"}),
    "distilbert-classic": ("distilbert", CLASSIC),
    "opt-with-biases": ("opt", {"r": 4, "target_modules": ["fc1", "q_proj"]}),
}


def quantized_model(recipe: Recipe, *, double_quant: bool, directory: Path) -> Any:
    """A checkpoint loaded in 4 bits, prepared and wrapped, as every QLoRA tutorial does it."""
    assert isinstance(recipe.model, dict)
    assert recipe.task is not None
    made = build_model(recipe.model, recipe.task.value, dtype=DType.BFLOAT16, device="cpu")
    # A pre-trained encoder comes without the head of a classifier, which is therefore never quantized.
    (made.base_model if recipe.task is Task.SEQUENCE_CLASSIFICATION else made).save_pretrained(directory)
    auto = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
    }[recipe.task.value]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(recipe.llm_int8_skip_modules) if recipe.llm_int8_skip_modules else None,
        )
        model = auto.from_pretrained(
            directory, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cpu"}
        )
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert recipe.peft is not None
        return peft.get_peft_model(model, peft_config("LORA", recipe.peft, recipe.task.value))


def packed_blocks(layer: Any) -> list[int]:
    """Bytes of every tensor behind a 4-bit weight."""
    weight = layer.weight
    assert isinstance(weight, Params4bit)
    state = weight.quant_state
    tensors = [weight.data, state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sorted(round_to_block(nbytes(tensor)) for tensor in tensors)


@pytest.mark.parametrize("double_quant", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_bnb_8bit"])
@pytest.mark.parametrize("case", QUANTIZED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_qlora_after_one_step(case: str, optimizer: str, double_quant: bool, tmp_path: Path) -> None:
    family, adapter = QUANTIZED[case]
    config, task, _ = FAMILIES[family]
    recipe = Recipe(
        model=config, task=task, method="qlora", peft=adapter, bnb_4bit_use_double_quant=double_quant, optim=optimizer,
        dtype="bfloat16",
        # Without it, the forward of DistilBERT's new head fails in bitsandbytes (see memplan.quantization.policy.is_quantized).
        llm_int8_skip_modules=("pre_classifier", "classifier") if family == "distilbert" else None,
    )  # fmt: skip
    model = quantized_model(recipe, double_quant=double_quant, directory=tmp_path / "model")
    prepared = prepare(recipe)
    with torch.autocast("cpu", torch.bfloat16):
        real_optimizer = one_step(model, task, optimizer, {}, tmp_path)
    bases = {name for name, _, _ in prepared.architecture.named_parameters()}
    real = observe(model, real_optimizer, bases)
    packed = {
        base_name(f"{strip_prefix(path)}.weight", bases): packed_blocks(layer)
        for path, layer in model.named_modules()
        if isinstance(layer, Linear4bit)
    }
    stored = {entry.name: entry for entry in prepared.state.stored}
    assert {name: sorted(entry.block_sizes) for name, entry in stored.items() if entry.quantized} == packed
    plain = {name: value for name, value in real.parameters.items() if name not in packed}
    assert {
        name: ((entry.shape, str(entry.dtype)), exact_bytes(entry))
        for name, entry in stored.items()
        if not entry.quantized
    } == plain
    names = [entry.name for group in grouped(prepared) for entry in group]
    assert sorted(names) == sorted(real.gradients)
    assert prepared.state.gradients_bytes == sum(map(round_to_block, real.gradients.values()))
    ours = {
        name: {tensor.name: (tensor.shape, str(tensor.dtype)) for tensor in prepared.optimizer.state_tensors(param)}
        for name, param in by_name(prepared).items()
    }
    assert ours == real.states
    counts = prepared.state.parameters
    assert (counts.trainable, counts.total) == model.get_nb_trainable_parameters()


def test_the_classic_classifier_trains_its_head() -> None:
    """DistilBERT with two labels: 6 layers x 2 modules x 2 x 768 x 8, pre_classifier and classifier."""
    recipe = Recipe(
        model="distilbert/distilbert-base-uncased", task="sequence-classification", method="qlora", peft=CLASSIC
    )
    counts = prepare(recipe).state.parameters
    assert counts.trainable == 147_456 + (768 * 768 + 768) + (768 * 2 + 2)
    # PEFT keeps the frozen originals of the head beside the copies that it trains.
    base = 66_955_010
    assert counts.total == base + counts.trainable


# -- the parts that are no oracle's business --------------------------------------------------------------


def test_master_copies_are_made_of_half_precision_parameters_only() -> None:
    config = FAMILIES["llama"][0]
    state = prepare(Recipe(model=config, precision="master")).state
    elements = state.parameters.total
    per_parameter = state.bytes_per_parameter
    assert (per_parameter.weights, per_parameter.gradients) == (2, 2)
    assert state.master_bytes == sum(round_to_block(4 * entry.elements) for entry in state.stored)
    assert per_parameter.optimizer == pytest.approx(12 + 4 * len(state.stored) / elements, abs=1e-6)
    adapters = prepare(Recipe(model=config, dtype="bfloat16", precision="master", method="lora")).state
    assert adapters.master_bytes == 0  # PEFT's adapters are float32


def test_nothing_trained_has_no_bytes_per_parameter() -> None:
    none = replace(prepare(Recipe(model=FAMILIES["llama"][0])).state, stored=())
    assert none.bytes_per_parameter.total == 0


def test_paged_states_are_not_on_the_device() -> None:
    config = FAMILIES["llama"][0]
    paged = prepare(Recipe(model=config, optim="paged_adamw_8bit")).state.states
    plain = prepare(Recipe(model=config, optim="adamw_8bit")).state.states
    # Pages are for 100 000 elements or more (bitsandbytes/optim/optimizer.py, get_state_buffer); here none is so large.
    assert paged == plain
    large = prepare(Recipe(model={**config, "vocab_size": 1400}, optim="paged_adamw_8bit")).state.states
    assert large.paged_bytes == 2 * (4 + 1) * 1400 * 72  # both states of the embedding in 32 bits, of lm_head in 8


def test_float16_keeps_t5s_output_projection_in_float32() -> None:
    config = FAMILIES["t5"][0]
    stored = prepare(Recipe(model=config, dtype="float16")).state.stored
    wide = {entry.name.rsplit(".", 2)[-2] for entry in stored if entry.dtype is DType.FLOAT32}
    assert wide == {"wo"}
    assert all(entry.dtype is DType.BFLOAT16 for entry in prepare(Recipe(model=config, dtype="bfloat16")).state.stored)


def test_sites_hold_every_base_parameter_once() -> None:
    prepared = prepare(recipe_of("mixtral", "lora", "sgd"))
    named = {f"{path}.{entry.name}" for path, site in prepared.sites.items() for entry in site.parameters}
    assert named == {name for name, _, _ in prepared.architecture.named_parameters()}
    with_lora = {path.rpartition(".")[2] for path, site in prepared.sites.items() if site.adapter}
    assert with_lora == {"q_proj"}
    assert not any(entry.trainable for site in prepared.sites.values() for entry in site.parameters)


def test_a_published_70b_model_by_the_classic_sixteen_bytes() -> None:
    state = prepare(Recipe(model="meta-llama/Llama-3.1-70B", precision="fp32")).state
    assert state.parameters.total == 70_553_706_496
    assert state.bytes_per_parameter.total == pytest.approx(16, abs=1e-3)
