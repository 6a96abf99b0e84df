"""What memplan knows, as plain values: the JSON of `memplan models | gpus | methods | optimizers` and of the API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memplan.cards import ModelCard
from memplan.catalog.gpus import Gpu
from memplan.errors import MemplanError
from memplan.methods.registry import Method
from memplan.optimizers.catalog import OptimizerRow

# How weights may be stored, as recipes say it.
_STORED = (
    ("float32", {"dtype": "float32"}),
    ("bfloat16", {"dtype": "bfloat16"}),
    ("LLM.int8", {"load_in_8bit": True, "method": "lora"}),
    ("NF4", {"load_in_4bit": True, "method": "lora"}),
    ("NF4, double quantization", {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "method": "lora"}),
)
_SAMPLE_SHAPE = (4096, 4096)
# Low-rank optimizers want to be told where to work.
_SAMPLE_OPTIONS = {layout: {"optim_target_modules": "all-linear"} for layout in ("galore", "apollo")}


def model_entry(card: ModelCard) -> dict[str, Any]:
    """A card in the list of models."""
    return {
        "id": card.id,
        "parameters": card.parameters,
        "model_class": card.model_class,
        "confidence": card.confidence,
    }


def model_details(card: ModelCard) -> dict[str, Any]:
    """Everything on a card, and what its weights take."""
    return card.model_dump(mode="json") | {"weights_bytes": dict(stored_bytes(card.id))}


def stored_bytes(card_id: str) -> list[tuple[str, int]]:
    """Bytes of the base weights, quantization state included, by how they are stored."""
    from memplan.engine import model_states
    from memplan.estimate import Component
    from memplan.recipe import Recipe

    found = []
    for name, keys in _STORED:
        recipe: dict[str, Any] = {"prepare_model_for_kbit_training": False} if "method" in keys else {}
        try:
            state = model_states(Recipe(model=card_id, **recipe, **keys))
        except MemplanError:
            continue  # LoRA finds no default targets, or the base is quantized already
        loaded = state.loaded
        found.append((name, loaded[Component.WEIGHTS] + loaded.get(Component.QUANTIZATION_STATE, 0)))
    return found


def gpu_entry(gpu: Gpu) -> dict[str, Any]:
    """A row of the GPU catalogue."""
    return asdict(gpu)


def method_entry(method: Method) -> dict[str, Any]:
    """A fine-tuning method."""
    return {
        "name": method.name,
        "description": method.description,
        "peft_type": method.peft_type,
        "options": dict(method.options),
        "aliases": list(method.aliases),
    }


def optimizer_entry(row: OptimizerRow) -> dict[str, Any]:
    """A row of the optimizer catalogue, with the state that it keeps."""
    return asdict(row) | {"fixed": dict(row.fixed), "optim_args": list(row.optim_args)} | state_bytes(row.name)


def state_bytes(name: str) -> dict[str, float | None]:
    """Bytes of state a parameter of a large float32 matrix, on the device and in host memory."""
    from memplan.dtypes import DType
    from memplan.optimizers import ParamInfo, get_optimizer
    from memplan.optimizers.catalog import optimizer_rows

    elements = _SAMPLE_SHAPE[0] * _SAMPLE_SHAPE[1]
    sample = ParamInfo(_SAMPLE_SHAPE, DType.FLOAT32, "layer.weight", False, True)
    try:
        optimizer = get_optimizer(name, **_SAMPLE_OPTIONS.get(optimizer_rows()[name].layout.partition("_")[0], {}))
        state = optimizer.state_bytes({sample: 1})
    except MemplanError:
        return {"device_bytes_per_parameter": None, "host_bytes_per_parameter": None}
    return {
        "device_bytes_per_parameter": round(state.device_unrounded_bytes / elements, 4),
        "host_bytes_per_parameter": round((state.host_bytes + state.paged_bytes) / elements, 4),
    }
