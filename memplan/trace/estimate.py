"""From a resolved recipe to a trace, and from a trace to the `Estimate` that every answer of memplan is given in.

The recipe is resolved by the caller, so that this package stays independent of the analytic engine: whatever has the
attributes of `ResolvedRecipe` will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from memplan.blind_spots import blind_spots
from memplan.catalog.calibration import run_of
from memplan.catalog.cuda_context import UNNAMED_GPU_CONTEXT_BYTES, cuda_context
from memplan.catalog.gpus import Gpu
from memplan.catalog.multiprocessors import DEFAULT_MULTIPROCESSORS, multiprocessors
from memplan.errors import UnsupportedError
from memplan.estimate import (
    BytesPerParameter,
    Component,
    ComponentBytes,
    Estimate,
    Parameters,
    Peak,
    Phase,
    Provenance,
    TimelinePoint,
)
from memplan.quantization import Quantization
from memplan.resolve_evaluation import eval_batches
from memplan.step.allocator_run import replay
from memplan.trace.result import PhaseSummary, TraceResult
from memplan.trace.runner import run
from memplan.trace.spec import Checkpointing, GpuArch, TraceSpec
from memplan.verdict import judge

UNSLOTH_VERSION = "2026.10.9"
_BIASES = (r"re:(.*\.)?bias",)


class ResolvedRecipe(Protocol):
    """What is read of a recipe whose defaults are filled in (`memplan.resolve.Resolved`)."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Every recipe key that has a meaning for the run."""

    @property
    def sources(self) -> Mapping[str, str]:
        """For each key, where its value comes from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's complete configuration."""

    @property
    def method(self) -> str:
        """The method, by its own name."""

    @property
    def quantization(self) -> Quantization | None:
        """How the base model is stored; None as its dtype says."""

    @property
    def gpu(self) -> Gpu | None:
        """The GPU, if one is named."""

    @property
    def uncovered(self) -> tuple[str, ...]:
        """What the run has beyond its keys."""


def spec_of(resolved: ResolvedRecipe) -> TraceSpec:
    """The trace of a resolved recipe.

    Raises:
        UnsupportedError: a recipe that one process on one GPU with transformers, PEFT and bitsandbytes cannot run.
    """
    values = resolved.values
    _refuse_what_cannot_be_traced(values)
    peft, packs = values.get("peft") or None, bool(values.get("packing"))
    stack = str(values.get("stack"))
    trl, unsloth = stack == "trl", stack == "unsloth"
    quantized = bool(values.get("load_in_4bit") or values.get("load_in_8bit"))
    checkpointing = values.get("activation_checkpointing")
    if checkpointing is True:
        # modeling_utils.py, _activation_checkpointing_enable; unsloth_zoo/training_utils.py.
        checkpointing = Checkpointing.REENTRANT if unsloth else Checkpointing.NON_REENTRANT
    autocast = values.get("autocast_dtype") if str(values.get("precision")) == "amp" else None
    return TraceSpec(
        model_config=dict(resolved.config),
        task=str(values["task"]),
        num_labels=int(values.get("num_labels") or 2),
        peft=peft,
        trainable=_BIASES if values.get("method") == "bitfit" else values.get("trainable"),
        # SFTTrainer casts the adapters of a quantized base by itself, after PEFT has.
        autocast_adapter_dtype=bool(values.get("autocast_adapter_dtype", True)) or (trl and quantized),
        dtype=str(values["dtype"]),
        autocast=str(autocast) if autocast else None,
        grad_scaler=str(autocast) == "float16",
        load_in_4bit=bool(values.get("load_in_4bit")),
        load_in_8bit=bool(values.get("load_in_8bit")),
        bnb_4bit_quant_type=values.get("bnb_4bit_quant_type") or "nf4",
        bnb_4bit_use_double_quant=bool(values.get("bnb_4bit_use_double_quant")),
        bnb_4bit_compute_dtype=values.get("bnb_4bit_compute_dtype"),
        bnb_4bit_quant_storage=str(values.get("bnb_4bit_quant_storage") or "uint8"),
        llm_int8_skip_modules=values.get("llm_int8_skip_modules"),
        prepare_for_kbit_training=bool(values.get("prepare_model_for_kbit_training", False)),
        optim=str(values["optim"]),
        optim_args=values.get("optim_args") or {},
        optimizer_in_backward=bool(values.get("optimizer_in_backward")),
        weight_decay_groups=stack != "torchtune",
        warmup=stack != "torchtune",
        batch=1 if packs else int(values["micro_batch_size"]),
        sequence=int(values["sequence_length"]) * (int(values["micro_batch_size"]) if packs else 1),
        packing=packs,
        packed_sequences=int(values["micro_batch_size"]) if unsloth else _packed_sequences(values) if packs else 2,
        target_sequence=values.get("target_length"),
        gradient_accumulation_steps=int(values["gradient_accumulation_steps"]),
        checkpointing=Checkpointing(checkpointing or Checkpointing.NONE),
        activation_offloading="none" if unsloth else values.get("activation_offloading") or "none",
        padding=bool(values["padding"]),
        attn_implementation=str(values["attn_implementation"]),
        gpu_arch=_architecture(resolved.gpu),
        max_grad_norm=float(values["max_grad_norm"]),
        keep_outputs=values["keep_outputs"],
        use_cache=bool(values.get("use_cache", False)),
        expandable_segments=bool(values["expandable_segments"]),
        empty_cache_steps=int(values.get("empty_cache_steps") or 0),
        attention_mask=trl and not packs,
        stack=stack if stack in ("trl", "torchtune", "unsloth") else "transformers",  # type: ignore[arg-type]
        offloads_hidden_states=unsloth and bool(values.get("activation_offloading")),
        gpu_memory_bytes=resolved.gpu.usable_bytes if resolved.gpu is not None else 80 * 2**30,
        liger_kernels=str(values.get("stack")) == "liger",
        multiprocessors=multiprocessors(resolved.gpu) or DEFAULT_MULTIPROCESSORS,
        loss="default" if unsloth else str(values.get("loss", "default")),  # type: ignore[arg-type]
        eval_batches=eval_batches(values),
        prediction_loss_only=bool(values.get("prediction_loss_only", True)),
        eval_accumulation_steps=int(values.get("eval_accumulation_steps") or 0),
        max_new_tokens=int(values.get("max_new_tokens") or 0),
        prompt_batch=int(values.get("per_device_eval_batch_size") or 0),
        prompt_length=int(values.get("max_prompt_length") or 0),
        saves=str(values.get("save_strategy", "no")) != "no",
        merges=bool(values.get("merge_and_unload")),
    )


def _packed_sequences(values: Mapping[str, Any]) -> int:
    """Texts in a packed row: two at least, or it would not be packed. Only flash-attn's backward depends on their number."""
    tokens = int(values["micro_batch_size"]) * int(values["sequence_length"])
    return max(-(-tokens // int(values.get("packed_text_tokens") or tokens)), 2)


def _refuse_what_cannot_be_traced(values: Mapping[str, Any]) -> None:
    trl, unsloth = (str(values.get("stack")) == name for name in ("trl", "unsloth"))
    offloading = values.get("activation_offloading")
    reasons = {
        "more than one GPU": values.get("gpus", 1) != 1,
        f"stack={values.get('stack')}": str(values.get("stack", "transformers"))
        not in ("transformers", "trl", "liger", "torchtune", "unsloth"),
        f"activation_offloading={offloading}": not _offloads_as_traced(values),
        "padded batches under Unsloth, whose layers it compiles": unsloth and not values.get("packing"),
        f"stack=unsloth with loss={values.get('loss')}": unsloth and str(values.get("loss")) != "fused_linear",
        "non-reentrant checkpoints under Unsloth": unsloth
        and values.get("activation_checkpointing") == "non-reentrant",
        f"Unsloth {values.get('stack_version')}": unsloth
        and str(values.get("stack_version") or UNSLOTH_VERSION) != UNSLOTH_VERSION,
        f"attn_implementation={values.get('attn_implementation')} under Unsloth": unsloth
        and str(values.get("attn_implementation")) != "sdpa",
        f"precision={values.get('precision')}": str(values.get("precision")) not in ("fp32", "amp", "pure"),
        f"method={values.get('method')}": not values.get("peft")
        and values.get("method", "full") not in ("full", "bitfit"),
        "bitfit under a classification head": values.get("method") == "bitfit"
        and "classification" in str(values["task"]),
        f"quantization_config={values.get('quantization_config')}": bool(values.get("quantization_config")),
        f"updates inside backward under stack={values.get('stack')}": str(values.get("stack"))
        in ("torchtune", "unsloth")
        and (bool(values.get("optimizer_in_backward")) or values["optim"] in ("lomo", "adalomo")),
        "optim_target_modules": bool(values.get("optim_target_modules")),
        f"stack=trl with loss={values.get('loss')}": trl and str(values.get("loss")) != "chunked",
        f"TRL {values.get('stack_version')}": trl and not str(values.get("stack_version") or "1.16").startswith("1.16"),
        "packing with padding": bool(values.get("packing")) and bool(values.get("padding")),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UnsupportedError(
            f"a trace does not cover {', '.join(found)}", hint="the analytic estimate may", code="not_traceable"
        )


def _offloads_as_traced(values: Mapping[str, Any]) -> bool:
    stacks = {
        "checkpoints": ("transformers", "trl", "liger"),
        "saved-tensors": ("trl",),
        "hidden-states": ("unsloth",),
    }
    variant, stack = values.get("activation_offloading"), str(values.get("stack", "transformers"))
    return not variant or stack in stacks[str(variant)]


def _architecture(gpu: Gpu | None) -> GpuArch:
    if gpu is None:
        return GpuArch.SM80
    if gpu.compute_capability is None:
        raise UnsupportedError(f"a trace knows CUDA's kernels, not those of {gpu.name}", code="not_traceable")
    major, minor = gpu.compute_capability
    name = f"sm{major}{minor}"
    if name not in [*GpuArch]:
        raise UnsupportedError(f"a trace does not know the kernels of {gpu.name} ({name})", code="not_traceable")
    return GpuArch(name)


def trace(resolved: ResolvedRecipe, *, timeout_s: float | None = None) -> Estimate:
    """The answer of a trace to a resolved recipe.

    Raises:
        UnsupportedError: the recipe cannot be traced, or the trace could not be finished (`TraceFailedError`).
        UnavailableError: torch, transformers or PEFT is missing.
    """
    spec = spec_of(resolved)
    return to_estimate(run(spec, timeout_s=timeout_s), resolved, expandable_segments=spec.expandable_segments)


def to_estimate(result: TraceResult, resolved: ResolvedRecipe, *, expandable_segments: bool = False) -> Estimate:
    """`result` in the vocabulary of every other answer."""
    top = result.peak
    report = replay(result.allocator_events(), expandable_segments=expandable_segments)
    gpu = resolved.gpu
    unsupported = (*resolved.uncovered, *unseen(resolved))
    context = cuda_context(gpu).expected_bytes if gpu is not None else UNNAMED_GPU_CONTEXT_BYTES
    return Estimate(
        recipe=dict(resolved.values),
        recipe_sources=dict(resolved.sources),
        parameters=Parameters(**result.parameters),
        bytes_per_parameter=bytes_per_parameter(result, keeps_gradients=not spec_of(resolved).updates_in_backward),
        peak=Peak(
            live_bytes=top.peak_bytes,
            allocated_bytes=report.max_allocated_bytes,
            reserved_bytes=report.max_reserved_bytes,
            device_bytes=report.max_reserved_bytes + context,
            step=top.step,
            phase=Phase(top.phase),
            at=_place(top),
        ),
        components=tuple(
            ComponentBytes(component=component, bytes=top.components[component])
            for component in Component
            if top.components.get(component)
        ),
        timeline=tuple(
            TimelinePoint(
                step=entry.step, phase=Phase(entry.phase), peak_bytes=entry.peak_bytes, end_bytes=entry.end_bytes
            )
            for entry in result.merged_phases
        ),
        host_bytes=result.host_bytes + result.host_copies_bytes,
        verdict_report=judge(
            gpu,
            report.max_reserved_bytes,
            bool(unsupported),
            run_of(resolved.values, str(resolved.config["model_type"])),
        )
        if gpu is not None
        else None,
        assumptions=assumptions(result, gpu, str(resolved.values.get("torch_version", ""))),
        unsupported=unsupported,
        provenance=Provenance.TRACE,
        versions=result.versions,
    )


def unseen(resolved: ResolvedRecipe) -> tuple[str, ...]:
    """What a trace of the recipe is known to miss."""
    scheme = resolved.quantization.scheme if resolved.quantization is not None else None
    return blind_spots(resolved.method, str(resolved.config["model_type"]), scheme, resolved.values.get("peft") or {})


def _place(summary: PhaseSummary) -> str:
    return f"{summary.at.name} in {summary.at.module or 'the loss'}" if summary.at.name else "the start of the phase"


def bytes_per_parameter(result: TraceResult, *, keeps_gradients: bool = True) -> BytesPerParameter:
    """Bytes of weights, gradients and optimizer states of one trained parameter, as they were allocated.

    Args:
        result: the trace.
        keeps_gradients: whether all gradients exist together; else none is counted.
    """
    trained = {storage.name for storage in result.storages if storage.component == Component.GRADIENTS}
    trainable = result.parameters["trainable"] or 1
    first_steps: dict[str, int] = {}
    weights = states = 0
    for storage in result.storages:
        if storage.component == Component.GRADIENTS:
            first_steps[storage.name] = storage.size_bytes
        elif storage.component in (Component.WEIGHTS, Component.ADAPTERS) and storage.name in trained:
            weights += storage.size_bytes
        elif storage.component == Component.OPTIMIZER_STATES:
            states += storage.size_bytes
    return BytesPerParameter(
        weights=weights / trainable,
        gradients=sum(first_steps.values()) / trainable if keeps_gradients else 0.0,
        optimizer=(states + result.host_bytes) / trainable,
    )


def assumptions(result: TraceResult, gpu: Gpu | None, torch_version: str = "") -> tuple[str, ...]:
    """What the trace could not know, in sentences."""
    found = list(result.notes)
    installed = result.versions.get("torch", "")
    if torch_version and not installed.startswith(f"{torch_version}."):
        found.append(f"traced with torch {installed}, though the recipe names {torch_version}")
    if gpu is None:
        found.append("no GPU named: kernels as on compute capability 8.0, and a CUDA context of 400 MiB")
    found += [
        f"a value that decides memory was assumed {count} times at {site}" for site, count in result.guesses.items()
    ]
    if result.versions.get("shim") == "patched":
        found.append("no C++ compiler: torch was patched in memory instead of through the compiled shim")
    found.append("what kernels allocate inside comes from memplan/catalog/kernel_temporaries.toml")
    return tuple(found)
