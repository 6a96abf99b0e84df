"""The classic accounting beside the exact one: "16 bytes a parameter", and where it is off.

The classic rule takes a round number of parameters N and 16 bytes for each that is trained with Adam in mixed precision:
2 (weights) + 2 (gradients) + 4 (float32 copy) + 8 (two states). Frozen weights take 2 bytes, or half a byte in 4 bits:

    full    N × 16
    LoRA    N × 2   + N × 16 × trained share
    QLoRA   N × 0.5 + N × 16 × trained share

The same numbers come out of `memplan.precision` (policy `master`) and the optimizer's rule, and the difference to the exact
model states is itemised so that it adds up to the byte.

Source of the rule: Rajbhandari et al., arXiv 1910.02054, section 3.1; QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memplan.dtypes import DType
from memplan.engine import estimate, model_states
from memplan.errors import InputError
from memplan.estimate import Component, Estimate, Parameters
from memplan.methods import canonical_method
from memplan.model_state import ModelState, StoredParameter
from memplan.optimizers import ParamInfo, get_optimizer
from memplan.precision import policy_of
from memplan.recipe import Precision, Recipe

METHODS = ("full", "lora", "qlora")
# The configuration behind the line that tutorials print: 21,549,136 of 7,263,322,192 parameters, 0.2967 %.
EXAMPLE: Mapping[str, Any] = {
    "model": "mistralai/Mistral-7B-v0.1",
    "num_added_tokens": 5,
    "peft": {
        "peft_type": "LORA",
        "r": 8,
        "target_modules": [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head",
        ],
    },
}  # fmt: skip
_NAMED_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)
_SCALES = {"B": 10**9, "M": 10**6}
_SAMPLE_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class ClassicBytes:
    """Bytes of one parameter under the classic rule.

    Attributes:
        weights, gradients, master, states: of a trained parameter: 2, 2, 4, 8.
        frozen: of a frozen one in 16 bits: 2.
        packed: of a frozen one in 4 bits: 0.5.
    """

    weights: int
    gradients: int
    master: int
    states: int
    frozen: int
    packed: float

    @property
    def trained(self) -> int:
        """Of a trained parameter in all: 16."""
        return self.weights + self.gradients + self.master + self.states


@dataclass(frozen=True, slots=True)
class Item:
    """One reason why the exact figure differs from the classic one."""

    reason: str
    size_bytes: int


@dataclass(frozen=True)
class ClassicRow:
    """One method: the rule, the exact model states, and the whole run.

    Attributes:
        method: full, lora or qlora.
        base_bytes: the rule's bytes of frozen weights; 0 for full.
        trained_share: trained parameters over all.
        trained_bytes: the rule's bytes of trained parameters.
        items: what leads from the rule to the exact model states.
        states_bytes: exact bytes of weights, gradients and optimizer states.
        run: the estimate of a whole run with the method; its `unsupported` says why the step is not walked.
    """

    method: str
    base_bytes: int
    trained_share: float
    trained_bytes: int
    items: tuple[Item, ...]
    states_bytes: int
    run: Estimate

    @property
    def classic_bytes(self) -> int:
        """The rule's figure."""
        return self.base_bytes + self.trained_bytes

    @cached_property
    def run_items(self) -> tuple[Item, ...]:
        """What leads from the exact model states to the device's bytes at the peak; empty if the step is not walked."""
        if not self.run.timeline:
            return ()
        peak = self.run.peak
        alive = {entry.component: entry.bytes for entry in self.run.components}
        step = (Component.ACTIVATIONS, Component.LOGITS_AND_LOSS, Component.TEMPORARIES)
        stays = sum(size for component, size in alive.items() if component not in step)
        return (
            Item("gradients and states not alive at the peak, and the batch", stays - self.states_bytes),
            Item("activations", alive.get(Component.ACTIVATIONS, 0)),
            Item("logits and loss", alive.get(Component.LOGITS_AND_LOSS, 0)),
            Item("temporaries", alive.get(Component.TEMPORARIES, 0)),
            Item("allocator cache", peak.reserved_bytes - peak.live_bytes),
            Item("CUDA context", peak.device_bytes - peak.reserved_bytes),
        )


@dataclass(frozen=True)
class ClassicAccounting:
    """The whole comparison.

    Attributes:
        model: as the recipe names it.
        nominal_parameters: the round number N.
        nominal_source: where N is from.
        per_parameter: the rule.
        parameters: exact counts under LoRA.
        rows: full, lora, qlora.
    """

    model: str
    nominal_parameters: int
    nominal_source: str
    per_parameter: ClassicBytes
    parameters: Parameters
    rows: tuple[ClassicRow, ...]


def classic_accounting(recipe: Recipe | None = None) -> ClassicAccounting:
    """Full fine-tuning, LoRA and QLoRA of one model by the classic rule and exactly.

    Args:
        recipe: names the model and the LoRA; its method does not count. None: `EXAMPLE`.

    Raises:
        InputError: a recipe with a method that the rule does not know.
    """
    recipe = recipe if recipe is not None else Recipe(**EXAMPLE)
    _refuse_other_methods(recipe)
    per = classic_bytes()
    lora = model_states(_recipe_of(recipe, "lora"))
    nominal, source = _nominal(recipe, lora)
    rows = tuple(_row(recipe, method, per, nominal) for method in METHODS)
    name = recipe.model if isinstance(recipe.model, str) else str(recipe.model.get("model_type"))
    return ClassicAccounting(name, nominal, source, per, lora.parameters, rows)


def classic_bytes() -> ClassicBytes:
    """The rule, read off the precision policy `master`, AdamW and NF4 storage."""
    from memplan.quantization import Quantization, Scheme, stored_tensors

    policy, half = policy_of(Precision.MASTER), DType.BFLOAT16
    sample = ParamInfo((_SAMPLE_ELEMENTS,), policy.state_dtype(half))
    states = get_optimizer("adamw_torch").state_bytes({sample: 1}).device_unrounded_bytes
    packed = stored_tensors(Quantization(Scheme.NF4), (_SAMPLE_ELEMENTS, 1), half)
    return ClassicBytes(
        weights=half.itemsize_bytes,
        gradients=policy.gradient_dtype(half).itemsize_bytes,
        master=policy.master_bytes(half),
        states=states // _SAMPLE_ELEMENTS,
        frozen=half.itemsize_bytes,
        packed=sum(tensor.block_bytes for tensor in packed if tensor.role == "data") / _SAMPLE_ELEMENTS,
    )


def _refuse_other_methods(recipe: Recipe) -> None:
    method = canonical_method(recipe.method, recipe.peft)
    if method not in METHODS:
        raise InputError(
            f"the classic accounting knows {', '.join(METHODS)}, not {method}",
            hint="leave out --classic for the others",
        )


def _recipe_of(recipe: Recipe, method: str) -> Recipe:
    """`recipe` under one of the three methods, in the precision that the rule, or people, train it in."""
    said = recipe.said()
    for key in ("method", "precision", "dtype", "load_in_4bit", "load_in_8bit", "quantization_config"):
        said.pop(key, None)
    if method == "full":
        for key in ("peft", "lora_r", "lora_dropout", "target_modules", "autocast_adapter_dtype"):
            said.pop(key, None)
        return Recipe(**said, method=method, precision="master")
    return Recipe(**said, method=method, **({"dtype": "bfloat16"} if method == "lora" else {}))


def _nominal(recipe: Recipe, lora: ModelState) -> tuple[int, str]:
    """The round number that people say, and where it is from."""
    named = _NAMED_SIZE.search(recipe.model) if isinstance(recipe.model, str) else None
    if named is not None:
        return int(float(named[1]) * _SCALES[named[2].upper()]), "as the model's name says"
    return _elements([entry for entry in lora.stored if entry.component is Component.WEIGHTS]), "counted"


def _row(recipe: Recipe, method: str, per: ClassicBytes, nominal: int) -> ClassicRow:
    of_method = _recipe_of(recipe, method)
    state = model_states(of_method)
    share = state.parameters.trainable / state.parameters.total
    if method == "full":
        base, trained = 0, nominal * per.trained
    else:
        base = round(nominal * (per.packed if method == "qlora" else per.frozen))
        trained = round(nominal * per.trained * share)
    exact = sum(state.loaded.values()) + state.gradients_bytes + state.master_bytes + state.states.device_bytes
    items = _items(state, method, per, base, trained)
    rest = exact - base - trained - sum(item.size_bytes for item in items)
    items.append(Item("rounding to 512-byte blocks", rest))
    return ClassicRow(method, base, share, trained, tuple(items), exact, estimate(of_method))


def _items(state: ModelState, method: str, per: ClassicBytes, base: int, trained: int) -> list[Item]:
    stored = state.stored
    frozen = [entry for entry in stored if entry.component is Component.WEIGHTS and not entry.trainable]
    learned = [entry for entry in stored if entry.trainable]
    unit = per.packed if method == "qlora" else per.frozen
    plain = [entry for entry in frozen if not entry.quantized]
    count = _elements(learned)
    items = [
        Item("exact number of base parameters", round(_elements(frozen) * unit) - base),
        Item("exact number of trained parameters", count * per.trained - trained),
        Item("embeddings, head and norms stay in 16 bits", round(_elements(plain) * (per.frozen - unit))),
        Item("they are cast to float32 for training", sum(_extra(entry, per.frozen) for entry in plain)),
        Item("quantization constants", state.loaded.get(Component.QUANTIZATION_STATE, 0)),
        Item("trained weights are float32", sum(_extra(entry, per.weights) for entry in learned)),
        Item("their gradients too", _gradients(state, learned) - count * per.gradients),
        Item("and they need no float32 copy", _master(state, learned) - count * per.master),
        Item("optimizer's step counters", state.states.device_unrounded_bytes - count * per.states),
        Item("buffers", state.buffers_bytes),
    ]
    return [item for item in items if item.size_bytes]


def _elements(entries: list[StoredParameter]) -> int:
    # Sizes carry their symbols (`memplan.step.tensor.Dim`); the rule's half byte needs a plain number.
    return int(sum(entry.elements for entry in entries))


def _extra(entry: StoredParameter, classic_bytes_each: int) -> int:
    return entry.elements * (entry.dtype.itemsize_bytes - classic_bytes_each)


def _gradients(state: ModelState, entries: list[StoredParameter]) -> int:
    return sum(entry.elements * state.policy.gradient_dtype(entry.dtype).itemsize_bytes for entry in entries)


def _master(state: ModelState, entries: list[StoredParameter]) -> int:
    return sum(entry.elements * state.policy.master_bytes(entry.dtype) for entry in entries)
