"""The analytic answer: resolve, describe, adapt, count what stays, walk the step, judge.

estimate(recipe)       the whole answer
model_states(recipe)   exact parameters and model-state bytes only
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

from memplan.architecture import Architecture
from memplan.catalog.cuda_context import UNNAMED_GPU_CONTEXT_BYTES, cublas_workspace_bytes, cuda_context
from memplan.dtypes import DType
from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Component, ComponentBytes, Estimate, Parameters, Peak, Phase, Provenance, TimelinePoint
from memplan.families import Head, describe, family_of
from memplan.loading import Loading, loading
from memplan.methods import Adaptation, AddedKind, adapt
from memplan.model_state import ModelState, model_state, quantized_modules, sites_of
from memplan.optimizers import Optimizer, get_optimizer
from memplan.precision import policy_of
from memplan.quantization import Quantization, Scheme
from memplan.recipe import Loss, Precision, Recipe, Stack, Task
from memplan.resolve import Resolved, resolve
from memplan.step.allocator import AllocatorReport
from memplan.step.optimizer_step import OptimizerEvent, clipping_events, construction_events, step_events
from memplan.step.ports import CannotUnfold
from memplan.step.receipt import receipt
from memplan.step.recording import Recording, joined, record
from memplan.step.replay import Run, play
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.walk import PhasePeak, Resident, Walk, Walker
from memplan.verdict import judge

# Without a GPU in the recipe: the data-centre generation that most published figures come from, and the context range of
# GPUs without a reading.
DEFAULT_COMPUTE_CAPABILITY = (8, 0)
DEFAULT_WORKSPACE_BYTES = 8_519_680

# Of one step, in the allocator. From the second on they are alike; the third shows what the second left behind.
PLAYED_MICRO_STEPS = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that does not depend on batch and sequence."""

    architecture: Architecture
    adaptation: Adaptation
    optimizer: Optimizer
    quantized: frozenset[str]
    state: ModelState
    loading: Loading
    sites: Mapping[str, Site]


def estimate(recipe: Recipe | None = None, /, **keys: Any) -> Estimate:
    """How much memory the run needs, where it goes and when, and whether it fits.

    Args:
        recipe: a `Recipe`; or give its keys as keyword arguments. With both, the keywords change the recipe.
        keys: recipe keys.

    Raises:
        InputError: the recipe is wrong; says what, what is allowed, and what was probably meant.
        UnsupportedError: a method or optimizer for which not even the model states are known.
    """
    resolved = resolve(_as_recipe(recipe, keys))
    prepared = prepare(resolved)
    unsupported = unsupported_parts(resolved, prepared)
    if unsupported.step:
        return _states_only(resolved, prepared, unsupported.texts)
    return _walked(resolved, prepared, unsupported.texts)


def model_states(recipe: Recipe | None = None, /, **keys: Any) -> ModelState:
    """Exact parameters, and bytes of weights, gradients and optimizer states.

    Raises:
        InputError: the recipe is wrong.
        UnsupportedError: the method or optimizer has no rule.
    """
    return prepare(resolve(_as_recipe(recipe, keys))).state


def _as_recipe(recipe: Recipe | None, keys: Mapping[str, Any]) -> Recipe:
    if recipe is None:
        return Recipe(**keys)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"a Recipe was expected, not {type(recipe).__name__}",
            hint='for example estimate(model="...", method="lora")',
        )
    return recipe.replace(**keys) if keys else recipe


# -- what does not depend on batch and sequence -----------------------------------------------------------


def prepare(resolved: Resolved) -> Prepared:
    """Describe, quantize, adapt and count; cached."""
    values = resolved.values
    optim_args = values.get("optim_args") or {}
    targets = values.get("optim_target_modules")
    key = (
        json.dumps(resolved.config, sort_keys=True),
        Head(resolved.task, values.get("num_labels", 2)),
        resolved.method,
        json.dumps(resolved.peft, sort_keys=True, default=list),
        resolved.dtype,
        resolved.precision,
        resolved.quantization,
        bool(values.get("prepare_model_for_kbit_training")),
        values.get("autocast_adapter_dtype", True),
        values.get("trainable"),
        values["optim"],
        json.dumps(optim_args, sort_keys=True),
        targets,
    )
    return _prepare(*key)


@lru_cache(maxsize=128)
def _prepare(
    config_json: str,
    head: Head,
    method: str,
    peft_json: str,
    dtype: DType,
    precision: Precision,
    quantization: Quantization | None,
    prepare_kbit: bool,
    autocast_adapter_dtype: bool,
    trainable: tuple[str, ...] | None,
    optim: str,
    optim_args_json: str,
    optim_target_modules: str | tuple[str, ...] | None,
) -> Prepared:
    architecture = describe(json.loads(config_json), head)
    quantized = quantized_modules(architecture, quantization)
    plain = DType.FLOAT32 if prepare_kbit and quantization is not None else dtype
    packed = quantization is not None and quantization.scheme.is_4bit_bitsandbytes
    adaptation = adapt(
        architecture,
        method,
        json.loads(peft_json) or None,
        dtype=plain,
        quantized=quantized,
        quantized_dtype=quantization.compute_dtype if packed and quantization is not None else DType.FLOAT32,
        packed=packed,
        autocast_adapter_dtype=autocast_adapter_dtype,
        trainable=trainable,
    )
    options = json.loads(optim_args_json)
    if optim_target_modules is not None:
        options["optim_target_modules"] = optim_target_modules
    optimizer = get_optimizer(optim, **options)
    state = model_state(
        architecture,
        adaptation,
        optimizer,
        policy_of(precision),
        dtype=dtype,
        quantization=quantization,
        quantized=quantized,
        prepare_kbit=prepare_kbit,
    )
    return Prepared(
        architecture,
        adaptation,
        optimizer,
        quantized,
        state,
        loading(state, quantization),
        sites_of(architecture, adaptation, state, quantization, quantized),
    )


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What no rule covers.

    Attributes:
        texts: for the user.
        step: whether it keeps the step from being walked at all.
    """

    texts: tuple[str, ...]
    step: bool


def unsupported_parts(resolved: Resolved, prepared: Prepared) -> Unsupported:
    """Everything in the recipe that the walk has no rule for; where there is any, no verdict says `fits`."""
    values = resolved.values
    model_type = str(resolved.config["model_type"])
    step: list[str] = []
    if model_type not in family_of(model_type).walked:
        step.append(
            f"the step of {model_type} models (activations, temporaries); parameters and model states are exact"
        )
    elif resolved.task is not Task.CAUSAL_LM:
        step.append(f"the step under a {resolved.task} head; parameters and model states are exact")
    step += [f"the step of {resolved.method}: {text}" for text in prepared.adaptation.unwalked]
    copied = {entry.module for entry in prepared.adaptation.added if entry.kind is AddedKind.COPY}
    tied = {name.rpartition(".")[0] for pair in prepared.architecture.tied.items() for name in pair}
    if copied & tied:
        step.append(f"modules_to_save on a tied weight ({', '.join(sorted(copied & tied))})")
    if resolved.precision in (Precision.MASTER, Precision.MASTER_FP32_GRADS):
        step.append(f"the step under precision {resolved.precision}; model states are exact")
    if resolved.quantization is not None and not resolved.quantization.scheme.is_bitsandbytes:
        step.append(f"the step on {resolved.quantization.scheme} weights; their storage is exact")
    if values["stack"] is not Stack.TRANSFORMERS:
        step.append(f"the step under stack {values['stack']}")
    if values["loss"] is not Loss.DEFAULT:
        step.append(f"the {values['loss']} loss")
    if values["packing"]:
        step.append("packed sequences")
    if values["attn_implementation"] == "flash_attention_2":
        step.append("the flash_attention_2 package; sdpa runs the same kernel from PyTorch")
    if not prepared.state.parameters.trainable:
        step.append("a run that trains nothing")
    if prepared.optimizer.updates_in_backward:
        step.append(f"{values['optim']} updates parameters within backward")
    try:
        step_events(prepared.optimizer, prepared.state.trained)
    except UnsupportedError as error:
        step.append(error.message)
    other = list(resolved.recipe.uncovered)
    if resolved.gpu is not None and resolved.gpu.vendor != "NVIDIA":
        other.append(f"the kernels of {resolved.gpu.name}: the step is walked with NVIDIA's")
    head_size = _head_size(resolved.config)
    if (
        not step
        and head_size % 8
        and values["attn_implementation"] == "sdpa"
        and (resolved.autocast or resolved.dtype).is_half
    ):
        other.append(f"attention heads of {head_size} elements, which sdpa pads to a multiple of 8")
    if resolved.peft.get("init_lora_weights", True) not in (True, False, "gaussian"):
        other.append(f"what init_lora_weights={resolved.peft['init_lora_weights']} borrows while the adapter is made")
    if values["gpus"] > 1:
        other.append(f"parallelism over {values['gpus']} GPUs: the figures are those of one GPU that holds everything")
    if resolved.quantization is not None and resolved.quantization.scheme is Scheme.INT8:
        other.append("LLM.int8's outlier columns, which depend on the data")
    return Unsupported((*step, *other), bool(step))


def _head_size(config: Mapping[str, Any]) -> int:
    """Elements of an attention head; 0 where the config does not say."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(width) // int(heads) if width and heads else 0


# -- the two kinds of answer ------------------------------------------------------------------------------


def _settings(resolved: Resolved, prepared: Prepared) -> StepSettings:
    values = resolved.values
    mode = values["activation_checkpointing"]
    return StepSettings(
        batch=values["micro_batch_size"],
        sequence=values["sequence_length"],
        target_sequence=values.get("target_length") or 0,
        autocast=resolved.autocast,
        attn_implementation=str(values["attn_implementation"]),
        checkpointing=("non-reentrant" if mode is True else str(mode)) if mode else None,
        padding=values["padding"],
        compute_capability=_compute_capability(resolved),
        torch_version=_version(values["torch_version"]),
        workspace_bytes=_workspace_bytes(resolved),
        keep_outputs=values["keep_outputs"],
        use_cache=values["use_cache"] and not mode,
        input_require_grads=bool(mode),  # modeling_utils.py, _activation_checkpointing_enable
        virtual_tokens=prepared.adaptation.virtual_tokens,
        micro_batches=values["gradient_accumulation_steps"],
    )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _compute_capability(resolved: Resolved) -> tuple[int, int]:
    gpu = resolved.gpu
    return gpu.compute_capability if gpu is not None and gpu.compute_capability else DEFAULT_COMPUTE_CAPABILITY


def _workspace_bytes(resolved: Resolved) -> int:
    return cublas_workspace_bytes(resolved.gpu) if resolved.gpu is not None else DEFAULT_WORKSPACE_BYTES


def _recordings(resolved: Resolved, prepared: Prepared, *, fold: bool) -> tuple[Recording, ...]:
    """The first micro-step and, with gradient accumulation, one that finds gradients."""
    family = family_of(str(resolved.config["model_type"]))
    head = Head(resolved.task, resolved.values.get("num_labels", 2))
    settings = _settings(resolved, prepared)

    def recorded(settings: StepSettings) -> Recording:
        return record(lambda tape: family.forward(tape, resolved.config, head), prepared.sites, settings, fold=fold)

    first = recorded(settings)
    if settings.micro_batches == 1:
        return (first,)
    return joined(first, recorded(replace(settings, accumulating=True)))


def clipping(resolved: Resolved, prepared: Prepared) -> list[OptimizerEvent]:
    """What gradient clipping borrows."""
    policy = prepared.state.policy
    gradients: dict[DType, int] = {}
    for param in chain(*prepared.state.trained):
        dtype = policy.gradient_dtype(param.dtype)
        gradients[dtype] = gradients.get(dtype, 0) + 1
    return clipping_events(gradients, resolved.values["max_grad_norm"])


def _resident(resolved: Resolved, prepared: Prepared) -> Resident:
    state = prepared.state
    return Resident(
        loaded=state.loaded,
        gradients_bytes=state.gradients_bytes,
        load_transient_bytes=prepared.loading.peak_bytes - prepared.loading.end_bytes,
    )


def walk(resolved: Resolved, prepared: Prepared, *, fold: bool = True) -> tuple[tuple[Recording, ...], Walk]:
    """The recordings of a step's micro-steps and the walk over them."""
    recordings = _recordings(resolved, prepared, fold=fold)
    walker = Walker(
        recordings[0],
        _resident(resolved, prepared),
        construction_events(prepared.optimizer, prepared.state.trained),
        clipping(resolved, prepared),
        step_events(prepared.optimizer, prepared.state.trained),
        following=recordings[1] if len(recordings) > 1 else None,
    )
    return recordings, walker.run()


def _walked(resolved: Resolved, prepared: Prepared, unsupported: tuple[str, ...]) -> Estimate:
    recordings, walked = walk(resolved, prepared)
    top = walked.peak
    report = _replay(resolved, prepared, recordings)
    return _estimate(
        resolved,
        prepared,
        top.components,
        live=top.peak_bytes,
        allocated=max(report.max_allocated_bytes, top.peak_bytes),
        reserved=report.max_reserved_bytes,
        at=top,
        timeline=walked.phases,
        unsupported=unsupported,
        lines=receipt(prepared.state, recordings[0], top),
    )


def _replay(resolved: Resolved, prepared: Prepared, recordings: Sequence[Recording]) -> AllocatorReport:
    """What the caching allocator makes of the run."""
    expandable = resolved.values["expandable_segments"]
    try:
        return play(_run(prepared, resolved, recordings), expandable_segments=expandable)
    except CannotUnfold:
        every_layer = _recordings(resolved, prepared, fold=False)
        return play(_run(prepared, resolved, every_layer), expandable_segments=expandable)


def _run(prepared: Prepared, resolved: Resolved, recordings: Sequence[Recording]) -> Run:
    """The run as the allocator sees it."""
    later = min(resolved.values["gradient_accumulation_steps"], PLAYED_MICRO_STEPS) - 1
    return Run(
        load_events=prepared.loading.events,
        last_key=prepared.loading.last_key,
        micro_steps=(recordings[0], *recordings[1:] * later),
        construction=construction_events(prepared.optimizer, prepared.state.trained),
        clipping=clipping(resolved, prepared),
        optimizer_events=step_events(prepared.optimizer, prepared.state.trained),
    )


def _states_only(resolved: Resolved, prepared: Prepared, unsupported: tuple[str, ...]) -> Estimate:
    """A lower bound: what is alive when the optimizer steps, without activations and temporaries."""
    state = prepared.state
    components = dict(state.loaded)
    for component, size in (
        (Component.GRADIENTS, state.gradients_bytes),
        (Component.MASTER_WEIGHTS, state.master_bytes),
        (Component.OPTIMIZER_STATES, state.states.device_bytes),
    ):
        if size:
            components[component] = size
    total = sum(components.values())
    return _estimate(
        resolved,
        prepared,
        components,
        live=total,
        allocated=total,
        reserved=total,
        at=None,
        timeline=(),
        unsupported=unsupported,
        lines=receipt(state, None, None),
    )


def _estimate(
    resolved: Resolved,
    prepared: Prepared,
    components: Mapping[Component, int],
    *,
    live: int,
    allocated: int,
    reserved: int,
    at: PhasePeak | None,
    timeline: tuple[PhasePeak, ...] | list[PhasePeak],
    unsupported: tuple[str, ...],
    lines: tuple[Any, ...],
) -> Estimate:
    gpu, state = resolved.gpu, prepared.state
    context = cuda_context(gpu).expected_bytes if gpu is not None else UNNAMED_GPU_CONTEXT_BYTES
    peak = Peak(
        live_bytes=live,
        allocated_bytes=allocated,
        reserved_bytes=max(reserved, allocated),
        device_bytes=max(reserved, allocated) + context,
        step=at.at.step if at else 1,
        phase=at.at.phase if at else Phase.OPTIMIZER_STEP,
        at=str(at.at) if at else "model states alone: a lower bound, the step is not covered",
    )
    return Estimate(
        recipe=dict(resolved.values),
        recipe_sources=dict(resolved.sources),
        parameters=Parameters(total=state.parameters.total, trainable=state.parameters.trainable),
        bytes_per_parameter=state.bytes_per_parameter,
        peak=peak,
        components=tuple(
            ComponentBytes(component=component, bytes=components[component])
            for component in Component
            if components.get(component)
        ),
        timeline=tuple(
            TimelinePoint(
                step=entry.at.step, phase=entry.at.phase, peak_bytes=entry.peak_bytes, end_bytes=entry.end_bytes
            )
            for entry in timeline
        ),
        host_bytes=state.states.host_bytes + state.states.paged_bytes,
        verdict_report=judge(gpu, peak.reserved_bytes, bool(unsupported)) if gpu is not None else None,
        lines=lines,
        assumptions=assumptions(resolved, prepared),
        unsupported=unsupported,
        provenance=Provenance.ANALYTIC,
    )


def assumptions(resolved: Resolved, prepared: Prepared) -> tuple[str, ...]:
    """What was taken for granted, in sentences."""
    found = []
    card = resolved.model.card
    if card is not None and card.confidence != "high":
        found.append(f"the card of {card.id} is of {card.confidence} confidence: {card.source}")
    if resolved.gpu is None:
        found.append(
            "no GPU named: attention kernels and workspaces as on compute capability 8.0, a CUDA context of 400 MiB"
        )
    elif cuda_context(resolved.gpu).certainty == "assumed":
        found.append(f"the CUDA context of {resolved.gpu.name} is assumed: {cuda_context(resolved.gpu).source}")
    found.append("two steps of full-length sequences; the first is not measured apart from a warm-up of the allocator")
    if prepared.state.states.paged_bytes:
        found.append("paged optimizer states are counted as host memory")
    return tuple(found)
