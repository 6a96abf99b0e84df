"""What stays of a recipe whatever the batch: architecture, method, optimizer, model states, the order of loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from memplan.architecture import Architecture
from memplan.dtypes import DType
from memplan.families import Head, describe
from memplan.families.unsloth import unsloth_buffers_bytes
from memplan.loading import Loading, loading
from memplan.methods import Adaptation, adapt
from memplan.methods.torchtune import as_torchtune
from memplan.model_state import ModelState, model_state, quantized_modules, sites_of
from memplan.optimizers import Optimizer, get_optimizer
from memplan.precision import policy_of
from memplan.quantization import Quantization
from memplan.recipe import Precision, Stack, Task
from memplan.resolve import Resolved
from memplan.step.adapters.creation import creations
from memplan.step.optimizer_step import OptimizerEvent, construction_events, step_events
from memplan.step.site import Site
from memplan.torchtune.loading import loading as torchtune_loading
from memplan.torchtune.models import ComponentBuilder, component_builder, is_built


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that does not depend on batch and sequence.

    Attributes:
        courses: what steps record, by what besides the numbers in them decides it (`memplan.training_step`); shared by all
            that differ in the optimizer alone.
        steps: recorded steps on top of what stays, likewise.
    """

    architecture: Architecture
    adaptation: Adaptation
    optimizer: Optimizer
    quantized: frozenset[str]
    state: ModelState
    loading: Loading
    sites: Mapping[str, Site]
    courses: dict[Any, list[Any]]
    steps: dict[Any, list[Any]] = field(default_factory=dict)

    @cached_property
    def construction(self) -> tuple[OptimizerEvent, ...]:
        """States that the optimizer makes when it is constructed."""
        return tuple(construction_events(self.optimizer, (*self.state.trained, self.state.frozen)))

    @cached_property
    def optimizer_events(self) -> tuple[OptimizerEvent, ...]:
        """States and temporaries of the optimizer's step; none where it steps inside backward.

        Raises:
            UnsupportedError: the temporaries of this optimizer are not known.
        """
        if self.optimizer.updates_in_backward:
            return ()
        return tuple(step_events(self.optimizer, self.state.trained))


def prepare(resolved: Resolved) -> Prepared:
    """Describe, quantize, adapt and count; cached."""
    values = resolved.values
    base = _Base(
        config_json=json.dumps(resolved.config, sort_keys=True),
        head=Head(resolved.task, values.get("num_labels", 2)),
        method=resolved.method,
        peft_json=json.dumps(resolved.peft, sort_keys=True, default=list),
        dtype=resolved.dtype,
        precision=resolved.precision,
        quantization=resolved.quantization,
        prepare_kbit=bool(values.get("prepare_model_for_kbit_training")),
        autocast_adapter_dtype=values.get("autocast_adapter_dtype", True),
        stack=values["stack"],
        trainable=values.get("trainable"),
    )
    optim_args = json.dumps(values.get("optim_args") or {}, sort_keys=True)
    one_for_each = bool(values.get("optimizer_in_backward"))
    return _prepare(base, values["optim"], optim_args, values.get("optim_target_modules"), one_for_each)


@dataclass(frozen=True, slots=True)
class _Base:
    """What a recipe says that everything but the optimizer depends on."""

    config_json: str
    head: Head
    method: str
    peft_json: str
    dtype: DType
    precision: Precision
    quantization: Quantization | None
    prepare_kbit: bool
    autocast_adapter_dtype: bool
    stack: Stack
    trainable: tuple[str, ...] | None

    @property
    def widens(self) -> bool:
        """Whether what is left in 16 bits beside quantized weights is cast to float32."""
        return self.prepare_kbit and self.quantization is not None

    @property
    def torchtune(self) -> ComponentBuilder | None:
        """The builder of torchtune's that makes the model, if one does."""
        config = json.loads(self.config_json)
        is_made = self.stack is Stack.TORCHTUNE and self.head.task is Task.CAUSAL_LM and is_built(config)
        return component_builder(config) if is_made else None

    @property
    def plain_dtype(self) -> DType:
        """Of weights that are not quantized, when adapters come."""
        return DType.FLOAT32 if self.widens else self.dtype


@dataclass(eq=False)
class _Adapted:
    """What does not depend on the optimizer.

    Attributes:
        state: with the states of the first optimizer that was asked for.
        courses: as `Prepared` has them.
    """

    architecture: Architecture
    adaptation: Adaptation
    quantized: frozenset[str]
    state: ModelState | None = None
    sites: Mapping[str, Site] = field(default_factory=dict)
    loading: Loading | None = None
    courses: dict[Any, list[Any]] = field(default_factory=dict)


@lru_cache(maxsize=32)  # an entry is one to two megabytes, a model whose layers differ up to 25
def _prepare(
    base: _Base,
    optim: str,
    optim_args_json: str,
    optim_target_modules: str | tuple[str, ...] | None,
    one_for_each: bool,
) -> Prepared:
    adapted = _adapted(base)
    options = json.loads(optim_args_json)
    if optim_target_modules is not None:
        options["optim_target_modules"] = optim_target_modules
    optimizer = get_optimizer(optim, **options)
    if one_for_each:
        optimizer = replace(optimizer, one_for_each=True)
    # Whether it holds states of every trained parameter, whatever its name, and leaves the gradients alone.
    is_plain = not optimizer.reads_names and not optimizer.updates_in_backward
    architecture, adaptation, quantized = adapted.architecture, adapted.adaptation, adapted.quantized
    if adapted.state is not None and is_plain:
        state = replace(adapted.state, states=optimizer.state_bytes([*chain(*adapted.state.trained)]))
    else:
        state = model_state(
            architecture,
            adaptation,
            optimizer,
            policy_of(base.precision),
            dtype=base.dtype,
            quantization=base.quantization,
            quantized=quantized,
            prepare_kbit=base.prepare_kbit,
            trainer=base.stack is not Stack.TORCHTUNE,
        )
        if base.stack is Stack.UNSLOTH:
            state = replace(state, buffers_bytes=state.buffers_bytes + unsloth_buffers_bytes(architecture))
        if is_plain:
            adapted.state = state
    if adapted.loading is None:
        adapted.sites = sites_of(architecture, adaptation, state, base.quantization, quantized)
        adapted.loading = _loading(base, adapted, state)
    return Prepared(
        architecture, adaptation, optimizer, quantized, state, adapted.loading, adapted.sites, adapted.courses
    )


def _loading(base: _Base, adapted: _Adapted, state: ModelState) -> Loading:
    architecture, builder = adapted.architecture, base.torchtune
    if builder is not None:
        dora = bool(adapted.adaptation.peft.get("use_dora"))
        return torchtune_loading(state, architecture, builder, adapters=bool(adapted.adaptation.adapters), dora=dora)
    return loading(
        state,
        base.quantization,
        creations(architecture, adapted.sites, base.plain_dtype),
        prepare_kbit=base.widens,
        recast_adapters=base.stack is Stack.TRL and base.quantization is not None,
    )


@lru_cache(maxsize=32)
def _adapted(base: _Base) -> _Adapted:
    builder, adapters = base.torchtune, base.method not in ("full", "bitfit")
    architecture = describe(json.loads(base.config_json), base.head, stack=base.stack, adapters=adapters)
    quantization = base.quantization
    quantized = quantized_modules(architecture, quantization)
    packed = quantization is not None and quantization.scheme.is_4bit_bitsandbytes
    adaptation = adapt(
        architecture,
        base.method,
        json.loads(base.peft_json) or None,
        dtype=base.plain_dtype,
        quantized=quantized,
        quantized_dtype=quantization.compute_dtype if packed and quantization is not None else DType.FLOAT32,
        packed=packed,
        autocast_adapter_dtype=base.autocast_adapter_dtype,
        trainable=base.trainable,
    )
    if builder is not None:
        adaptation = as_torchtune(adaptation, builder)
    return _Adapted(architecture, adaptation, quantized)
