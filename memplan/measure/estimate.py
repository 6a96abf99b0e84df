"""A measured run as the `Estimate` that every answer of memplan is given in.

What stays between steps is known by component from the tensors; what comes and goes at the peak is known as a sum alone.
That sum stands under `activations` (and, inside backward, holds the gradients made so far), and the answer says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.catalog.calibration import run_of
from memplan.catalog.gpus import Gpu, get_gpu
from memplan.errors import UnknownNameError, UnsupportedError
from memplan.estimate import (
    BytesPerParameter,
    Component,
    ComponentBytes,
    Estimate,
    Fits,
    Parameters,
    Peak,
    Phase,
    Provenance,
    TimelinePoint,
    VerdictReport,
)
from memplan.measure.result import MeasureResult, PhaseReading
from memplan.trace.estimate import ResolvedRecipe, spec_of
from memplan.trace.spec import TraceSpec
from memplan.units import format_bytes
from memplan.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_STEPS = 3


def measured_spec(resolved: ResolvedRecipe, *, steps: int = DEFAULT_STEPS, device: str = "cuda") -> TraceSpec:
    """What to run for a resolved recipe: the trace's description of it, for `steps` steps on `device`.

    Raises:
        UnsupportedError: a recipe that one process on one GPU with transformers, PEFT and bitsandbytes cannot run.
    """
    import dataclasses

    try:
        spec = spec_of(resolved)
    except UnsupportedError as error:
        if error.code != "not_traceable":
            raise
        message = error.message.replace("a trace does not", "a measurement does not")
        raise UnsupportedError(message, hint=error.hint, code="not_measurable") from None
    beside = {
        f"stack={spec.stack}": spec.stack != "transformers",
        "Liger's kernels": spec.liger_kernels,
        f"loss={spec.loss}": spec.loss != "default",
        "eval_strategy": bool(spec.eval_batches),
        "max_new_tokens": bool(spec.max_new_tokens),
        "save_strategy": spec.saves,
        "merge_and_unload": spec.merges,
    }
    asked = [key for key, is_asked in beside.items() if is_asked]
    if asked:
        raise UnsupportedError(
            f"a measurement does not cover {', '.join(asked)}: it runs the training steps of transformers' Trainer",
            hint="leave it out; the estimate and the trace cover it",
            code="not_measurable",
        )
    return dataclasses.replace(spec, num_steps=steps, device="cpu" if device == "cpu" else "cuda")


def measured_gpu(result: MeasureResult) -> Gpu | None:
    """The catalog's row of the GPU that was measured, or None."""
    try:
        return get_gpu(result.environment.get("gpu", ""))
    except UnknownNameError:
        return None


def to_estimate(result: MeasureResult, resolved: ResolvedRecipe) -> Estimate:
    """`result` in the vocabulary of every other answer."""
    top = result.top
    components = _components(result, top)
    live = sum(components.values())
    allocated = max(result.max_allocated_bytes, live)
    reserved = max(result.max_reserved_bytes or 0, allocated)
    return Estimate(
        recipe=dict(resolved.values),
        recipe_sources=dict(resolved.sources),
        parameters=Parameters(total=result.parameters.get("total", 0), trainable=result.parameters.get("trainable", 0)),
        bytes_per_parameter=_bytes_per_parameter(result),
        peak=Peak(
            live_bytes=live,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
            device_bytes=max(result.max_device_bytes or 0, reserved),
            step=top.step,
            phase=Phase(top.phase),
            at=result.death.where if result.death else f"the {top.phase} of step {top.step}, as a whole",
        ),
        components=tuple(
            ComponentBytes(component=component, bytes=components[component])
            for component in Component
            if components.get(component)
        ),
        timeline=_timeline(result),
        host_bytes=result.paged_bytes,
        verdict_report=_verdict(result, resolved, reserved),
        assumptions=_sentences(result),
        provenance=Provenance.MEASURED,
        versions=dict(result.environment),
    )


def _components(result: MeasureResult, top: PhaseReading) -> dict[Component, int]:
    stays = {Component(key): size for key, size in result.resident.items() if key != Component.GRADIENTS}
    if top.step == 0 or (top.step == 1 and top.phase != Phase.OPTIMIZER_STEP):
        stays.pop(Component.OPTIMIZER_STATES, None)
    if top.phase == Phase.OPTIMIZER_STEP and Component.GRADIENTS in result.resident:
        stays[Component.GRADIENTS] = result.resident[Component.GRADIENTS]
    # Requested bytes leave out what the allocator adds to a block; where they are not known, blocks are what there is.
    live = top.peak_requested_bytes or top.peak_allocated_bytes
    rest = live - sum(stays.values())
    if rest > 0:
        stays[Component.ACTIVATIONS] = rest
    return stays


def _timeline(result: MeasureResult) -> tuple[TimelinePoint, ...]:
    """One point a phase; micro-batches of a step are one, with the highest peak and the last end."""
    found: dict[tuple[int, str], TimelinePoint] = {}
    for entry in result.phases:
        before = found.get((entry.step, entry.phase))
        found[entry.step, entry.phase] = TimelinePoint(
            step=entry.step,
            phase=Phase(entry.phase),
            peak_bytes=max(entry.peak_allocated_bytes, before.peak_bytes if before else 0),
            end_bytes=entry.end_allocated_bytes,
        )
    return tuple(found.values())


def _bytes_per_parameter(result: MeasureResult) -> BytesPerParameter:
    trainable = result.parameters.get("trainable") or 1
    resident: Mapping[str, int] = result.resident
    whole = result.parameters.get("trainable") == result.parameters.get("total")
    weights = resident.get("weights", 0) if whole else resident.get("adapters", 0)
    return BytesPerParameter(
        weights=weights / trainable,
        gradients=resident.get("gradients", 0) / trainable,
        optimizer=(resident.get("optimizer_states", 0) + result.paged_bytes) / trainable,
    )


def _verdict(result: MeasureResult, resolved: ResolvedRecipe, reserved: int) -> VerdictReport | None:
    """On the card that was measured: what happened. On another one that the recipe names: as for any estimate."""
    if result.options.device != "cuda":
        return None
    measured = measured_gpu(result)
    asked = resolved.gpu
    if asked is not None and (measured is None or asked.id != measured.id):
        return judge(
            asked, reserved, unsupported=False, run=run_of(resolved.values, str(resolved.config["model_type"]))
        )
    if measured is None:
        return None
    usable = result.device.torch_total_bytes or measured.usable_bytes
    expected = max(result.max_device_bytes or 0, reserved)
    if result.options.capacity_bytes is not None:
        usable, expected = result.options.capacity_bytes, reserved
    died = result.outcome == "out_of_memory"
    return VerdictReport(
        gpu=measured.id,
        usable_bytes=usable,
        expected_bytes=expected,
        upper_bytes=expected,
        headroom_bytes=usable - expected,
        fits=Fits.DOES_NOT_FIT if died else Fits.FITS,
        margin="none: the run was measured on this card, "
        + ("and ran out of memory" if died else "and finished its steps"),
    )


def _sentences(result: MeasureResult) -> tuple[str, ...]:
    found = list(result.notes)
    death = result.death
    if death is not None:
        found.append(f"ran out of memory in the {death.where}: every figure is what was reached, not what is needed")
    if result.options.device == "cuda":
        found.append("live bytes are those requested, before rounding to blocks")
        if result.device.own_bytes is None:
            found.append("the driver could not be read: device bytes are the reserved bytes alone")
    else:
        found.append("reserved and device bytes repeat the live ones: the CPU has no caching allocator")
    found.append(
        "activations hold everything that comes and goes: logits, temporaries, gradients of a running backward"
    )
    if result.options.capacity_bytes is not None:
        found.append(f"torch's allocator was limited to {format_bytes(result.options.capacity_bytes)}")
    return tuple(found)
