"""The analytic answer: resolve, describe, adapt, count what stays, walk the step, judge.

estimate(recipe)       the whole answer
model_states(recipe)   exact parameters and model-state bytes only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.catalog.calibration import run_of
from memplan.catalog.cuda_context import UNNAMED_GPU_CONTEXT_BYTES, cuda_context
from memplan.errors import InputError
from memplan.estimate import (
    Component,
    ComponentBytes,
    Estimate,
    Line,
    Parameters,
    Peak,
    Phase,
    Provenance,
    TimelinePoint,
)
from memplan.filler import USER
from memplan.model_state import ModelState
from memplan.prepare import Prepared, prepare
from memplan.recipe import Attention, Offloading, Recipe, Stack
from memplan.resolve import Resolved, resolve
from memplan.step.receipt import receipt
from memplan.step.walk import PhasePeak
from memplan.torchtune.models import component_builder, is_built
from memplan.training_step import recorded_step, replay, settings_of, walk
from memplan.unsupported import unsupported_parts
from memplan.unsupported.in_backward import granted_in_backward
from memplan.verdict import judge


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


# -- the two kinds of answer ------------------------------------------------------------------------------


def _walked(resolved: Resolved, prepared: Prepared, unsupported: tuple[str, ...]) -> Estimate:
    step, sizes = recorded_step(resolved, prepared)
    walked = step.walker.run(sizes)
    top = walked.peak
    report = replay(resolved, prepared, step, sizes)

    def lines() -> tuple[Line, ...]:
        made, again = walk(resolved, prepared)
        return receipt(prepared.state, made[0], again.peak)

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
        lines=lines,
        host_copies=step.course.host_copies_bytes(settings_of(resolved, prepared)),
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
        lines=lambda: receipt(state, None, None),
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
    lines: Callable[[], tuple[Line, ...]],
    host_copies: int = 0,
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
    found = Estimate(
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
        host_bytes=state.states.host_bytes + state.states.paged_bytes + host_copies,
        verdict_report=judge(
            gpu, peak.reserved_bytes, bool(unsupported), run_of(resolved.values, str(resolved.config["model_type"]))
        )
        if gpu is not None
        else None,
        assumptions=assumptions(resolved, prepared),
        unsupported=unsupported,
        provenance=Provenance.ANALYTIC,
    )
    found.write_lines_with(lines)
    return found


def _about_batches(resolved: Resolved) -> list[str]:
    """What is taken for granted about the texts of a batch that flash_attention_2 takes apart."""
    values, sources = resolved.values, resolved.sources
    if values["attn_implementation"] is not Attention.FLASH_ATTENTION_2:
        return []
    found = []
    if values["packing"] and sources["packed_text_tokens"] != USER:
        found.append(
            f"texts of {values['packed_text_tokens']} tokens on average share packed rows: flash_attention_2 borrows more "
            "for shorter ones, less for longer ones (packed_text_tokens)"
        )
    if values["padding"]:
        found.append(
            "a padded batch has as many tokens as a full one: flash_attention_2 leaves padding out, and has fewer"
        )
    return found


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
    found += _about_batches(resolved)
    if resolved.values["stack"] is Stack.TORCHTUNE and is_built(resolved.config):
        builder = component_builder(resolved.config)
        each = "in every layer" if resolved.peft and not builder.shares_rope_under_lora else "for all layers"
        found.append(
            f"torchtune's rotary table of {builder.arguments['max_seq_len']} positions, the config's max_position_embeddings, "
            f"once {each}"
        )
    found += granted_in_backward(resolved, prepared)
    if prepared.state.states.paged_bytes:
        found.append("paged optimizer states are counted as host memory")
    if run_of(resolved.values, str(resolved.config["model_type"])).unseen_bytes:
        found.append(
            "cuSOLVER's workspace for the singular values of each adapted weight is not in the figures, while the model loads: "
            "no source states its size, so the upper bound holds the most that its interface can ask for"
        )
    if resolved.values.get("activation_offloading") == Offloading.SAVED_TENSORS:
        found.append(
            "tensors that come back from the host have a CUDA stream and memory of their own; what checkpoints still use of it "
            "is counted in reserved memory as free again when the step has ended, for how soon depends on the GPU's pace"
        )
    return tuple(found)
