"""Both sides of one cell of the matrix model x method: what PEFT builds, and what memplan says.

    real = real_parameters(config, "causal-lm", {"peft_type": "LORA"})
    ours = our_parameters(config, "causal-lm", "lora", {})
    assert not differences(real, ours)

Real models stand on the meta device unless a test asks for a CPU, which element types need: PEFT does not move adapters
to the dtype of a layer that is on the meta device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from memplan.architecture import Architecture
from memplan.cards import load_card
from memplan.dtypes import DType
from memplan.errors import MemplanError
from memplan.families import Head, describe
from memplan.methods import Adaptation, adapt
from memplan.methods.config import TASK_TYPES
from memplan.model_config import normalise_config
from memplan.recipe import Task

AUTO_CLASSES: dict[str, Any] = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    "image-classification": transformers.AutoModelForImageClassification,
    "feature-extraction": transformers.AutoModel,
    "image-text-to-text": transformers.AutoModelForImageTextToText,
    "pre-training": transformers.AutoModelForPreTraining,
    "speech-seq2seq": transformers.AutoModelForSpeechSeq2Seq,
}

# Keys that say how many layers a config has; truncation keeps two of each.
LAYER_KEYS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
PER_LAYER_KEYS = ("layer_types", "mlp_layer_types", "no_rope_layers", "mlp_only_layers", "indexer_types")


@dataclass(frozen=True)
class Cell:
    """Parameters by name as (shape, dtype, trainable): base parameters by their own name, the rest by PEFT's."""

    parameters: dict[str, tuple[tuple[int, ...], str, bool]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(torch.Size(shape).numel() for shape, _, _ in self.parameters.values())

    @property
    def trainable(self) -> int:
        return sum(torch.Size(shape).numel() for shape, _, trained in self.parameters.values() if trained)


def truncated(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """A card's config with `layers` layers at most."""
    found = copy.deepcopy(dict(config))
    for part in (found, *(value for value in found.values() if isinstance(value, dict))):
        for key in LAYER_KEYS:
            if isinstance(part.get(key), int):
                part[key] = min(part[key], layers)
        for key in PER_LAYER_KEYS:
            if isinstance(part.get(key), list):
                part[key] = part[key][:layers]
    return found


def card_config(card_id: str, *, layers: int | None = 2) -> dict[str, Any]:
    """The config of a card, with few layers unless `layers` is None."""
    config = load_card(card_id).config
    return copy.deepcopy(config) if layers is None else truncated(config, layers)


def architecture(config: Mapping[str, Any], task: str, num_labels: int = 2) -> Architecture:
    """Memplan's description of a model."""
    return describe(normalise_config(dict(config)), Head(Task(task), num_labels))


def build_model(
    config: Mapping[str, Any], task: str, *, dtype: DType = DType.FLOAT32, device: str = "meta", num_labels: int = 2
) -> Any:
    """The real transformers model."""
    keys = copy.deepcopy(dict(config))
    model_config = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    model_config.num_labels = num_labels
    with torch.device(device):
        model = AUTO_CLASSES[task].from_config(model_config, dtype=getattr(torch, dtype.value))
        untied = config.get("tie_word_embeddings") is False
        if model_config.model_type in ("t5", "mt5") and untied and hasattr(model, "lm_head"):
            # T5Config ties whatever it is told; a checkpoint that has its own lm_head keeps it when it is loaded.
            model.config.tie_word_embeddings = False
            model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    return model


def peft_config(peft_type: str, options: Mapping[str, Any], task: str) -> Any:
    """PEFT's own config object."""
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)]
    return cls(**{"task_type": TASK_TYPES.get(task), **copy.deepcopy(dict(options))})


def real_peft_model(
    config: Mapping[str, Any],
    task: str,
    peft_type: str,
    options: Mapping[str, Any],
    *,
    dtype: DType = DType.FLOAT32,
    device: str = "meta",
    autocast: bool = True,
    num_labels: int = 2,
) -> Any:
    """What `get_peft_model` makes of the real model."""
    model = build_model(config, task, dtype=dtype, device=device, num_labels=num_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about every oddity that these tests are after
        return peft.get_peft_model(model, peft_config(peft_type, options, task), autocast_adapter_dtype=autocast)


def base_name(name: str, bases: set[str]) -> str | None:
    """The base parameter that a name in `named_parameters()` is, wrappers taken off; None for an added one."""
    if ".modules_to_save." in name:
        return None
    bare = name
    for wrapper in (".base_layer", ".original_module", ".token_adapter"):
        bare = bare.replace(wrapper, "")
    if bare not in bases:  # adaption prompts put the attention they wrap at `model`
        bare = bare.replace("attn.model.", "attn.")
    return bare if bare in bases else None


# Tensors that layers share; PEFT names them after the first layer in the order of registration, memplan after the
# first in the order of the forward pass.
SHARED_TENSORS = (
    "vblora_vector_bank", "unilora_theta_d", "tinylora_v", "vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A",
    "randlora_B",
)  # fmt: skip


def without_owner(name: str) -> str:
    """A shared tensor's name without the layer that it happens to be named after."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part in SHARED_TENSORS:
            return ".".join(parts[index:])
    return name


def strip_prefix(name: str) -> str:
    """Without what PEFT's wrappers put before the base model."""
    return name.removeprefix("base_model.model.")


def real_parameters(model: Any, bases: set[str], *, prompt_learning: bool = False) -> Cell:
    """The parameters of a real PEFT model."""
    found = {}
    for full, parameter in model.named_parameters():
        name = full.removeprefix("base_model.") if prompt_learning else strip_prefix(full)
        key = base_name(name, bases) or without_owner(name)
        assert key not in found, key
        found[key] = (tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), parameter.requires_grad)
    return Cell(found)


def our_parameters(described: Architecture, adaptation: Adaptation, dtype: DType = DType.FLOAT32) -> Cell:
    """The same from memplan."""
    found: dict[str, tuple[tuple[int, ...], str, bool]] = {}
    for name, _, parameter in described.named_parameters():
        found[name] = (parameter.shape, dtype.value, name in adaptation.trainable_base)
    for added in adaptation.added:
        name = without_owner(added.name)
        assert name not in found, name
        found[name] = (added.shape, str(added.dtype), added.trainable)
    return Cell(found)


def real_buffers(model: Any, base_model_buffers: set[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Buffers that PEFT added."""
    found = {}
    for full, buffer in model.named_buffers():
        name = strip_prefix(full)
        if name.replace(".base_layer", "").replace(".original_module", "") in base_model_buffers:
            continue
        if ".modules_to_save." in name:
            continue
        found[without_owner(name)] = (tuple(buffer.shape), str(buffer.dtype).removeprefix("torch."))
    return found


def differences(real: Cell, ours: Cell, *, limit: int = 8) -> list[str]:
    """What differs, in words; empty if all is equal."""
    found = [f"only PEFT: {name} {real.parameters[name]}" for name in real.parameters if name not in ours.parameters]
    found += [
        f"only memplan: {name} {ours.parameters[name]}" for name in ours.parameters if name not in real.parameters
    ]
    found += [
        f"{name}: PEFT {value}, memplan {ours.parameters[name]}"
        for name, value in real.parameters.items()
        if name in ours.parameters and ours.parameters[name] != value
    ]
    return found[:limit]


def compare(
    config: Mapping[str, Any],
    task: str,
    peft_type: str,
    options: Mapping[str, Any],
    *,
    method: str | None = None,
    dtype: DType = DType.FLOAT32,
    device: str = "meta",
    autocast: bool = True,
    num_labels: int = 2,
) -> tuple[list[str], Cell, Cell]:
    """Build both sides of a cell and compare them; returns (differences, real, ours)."""
    described = architecture(config, task, num_labels)
    adaptation = adapt(
        described,
        method or peft_type.lower(),
        {**options, "peft_type": peft_type},
        dtype=dtype,
        autocast_adapter_dtype=autocast,
    )
    model = real_peft_model(
        config, task, peft_type, options, dtype=dtype, device=device, autocast=autocast, num_labels=num_labels
    )
    bases = {name for name, _, _ in described.named_parameters()}
    prompt_learning = bool(model.peft_config["default"].is_prompt_learning)
    real = real_parameters(model, bases, prompt_learning=prompt_learning)
    ours = our_parameters(described, adaptation, dtype)
    trainable, total = model.get_nb_trainable_parameters()
    found = differences(real, ours)
    if not found and (ours.trainable, ours.total) != (trainable, total):
        found = [f"counts: PEFT {trainable} of {total}, memplan {ours.trainable} of {ours.total}"]
    return found, real, ours


def assert_equals_peft(
    config: Mapping[str, Any],
    task: str,
    peft_type: str,
    options: Mapping[str, Any],
    *,
    dtype: DType = DType.BFLOAT16,
    autocast: bool = True,
) -> None:
    """Fail unless parameters and buffers of a small model on the CPU are PEFT's: names, shapes, dtypes, trainability."""
    found, _, _ = compare(config, task, peft_type, options, dtype=dtype, device="cpu", autocast=autocast)
    assert found == []
    described = architecture(config, task)
    adaptation = adapt(
        described, None, {**options, "peft_type": peft_type}, dtype=dtype, autocast_adapter_dtype=autocast
    )
    bare = build_model(config, task, dtype=dtype, device="cpu")
    model = real_peft_model(config, task, peft_type, options, dtype=dtype, device="cpu", autocast=autocast)
    base_buffers = {name for name, _ in bare.named_buffers()}
    if not model.peft_config["default"].is_prompt_learning:
        registered = [buffer for buffer in adaptation.buffers if buffer.registered]
        ours = {without_owner(buffer.name): (buffer.shape, str(buffer.dtype)) for buffer in registered}
        assert ours == real_buffers(model, base_buffers)


# What each method is run with on every card; sizes that every architecture admits.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {}),
    "lora-all-linear": ("LORA", {"target_modules": "all-linear"}),
    "dora": ("LORA", {"use_dora": True, "bias": "all"}),
    "loha": ("LOHA", {}),
    "lokr": ("LOKR", {"target_modules": "all-linear"}),
    "adalora": ("ADALORA", {"total_step": 10}),
    "prompt-tuning": ("PROMPT_TUNING", {"num_virtual_tokens": 5}),
    "prefix-tuning": ("PREFIX_TUNING", {"num_virtual_tokens": 5}),
    "prefix-projection": ("PREFIX_TUNING", {"num_virtual_tokens": 5, "prefix_projection": True}),
    "p-tuning": ("P_TUNING", {"num_virtual_tokens": 5}),
    "ia3": ("IA3", {}),
    "ln-tuning": ("LN_TUNING", {}),
    "trainable-tokens": ("TRAINABLE_TOKENS", {"token_indices": [3, 4]}),
    "oft": ("OFT", {}),
    "vera": ("VERA", {"r": 4}),
    "vblora": ("VBLORA", {"vector_length": 16}),
    "hra": ("HRA", {}),
    "miss": ("MISS", {"r": 8}),
    "hira": ("HIRA", {"r": 8}),
    "delora": ("DELORA", {}),
    "road": ("ROAD", {"group_size": 16}),
    "c3a": ("C3A", {"block_size": 16}),
    "beft": ("BEFT", {}),
}


def cell_differences(config: Mapping[str, Any], task: str, method: str) -> list[str]:
    """What differs between PEFT and memplan for a method of `METHODS`: nothing too where both refuse it."""
    peft_type, options = METHODS[method]
    try:
        ours: Cell | MemplanError = our_parameters(
            described := architecture(config, task), adapt(described, None, {**options, "peft_type": peft_type})
        )
    except MemplanError as error:
        ours = error
    try:
        model = real_peft_model(config, task, peft_type, options)
    except Exception as error:  # PEFT raises whatever its layers raise
        if isinstance(ours, MemplanError):
            return []
        return [f"PEFT refuses with {type(error).__name__}: {error}"]
    if isinstance(ours, MemplanError):
        return [f"memplan refuses: {ours}"]
    bases = {name for name, _, _ in described.named_parameters()}
    prompt_learning = bool(model.peft_config["default"].is_prompt_learning)
    found = differences(real_parameters(model, bases, prompt_learning=prompt_learning), ours)
    trainable, total = model.get_nb_trainable_parameters()
    if not found and (ours.trainable, ours.total) != (trainable, total):
        found = [f"counts: PEFT {trainable} of {total}, memplan {ours.trainable} of {ours.total}"]
    return found
