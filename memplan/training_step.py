"""The step of a recipe: settings, recordings, the walk over them, and what the allocator makes of the run.

A step is recorded once for what decides its course (kernels, precision, checkpointing, the method's modules) and then
answers for every batch and sequence for which it would have been recorded the same: `recorded_step` finds or makes it.

Symbols: B micro batch, S sequence length, T target length of encoder-decoder models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

from memplan.catalog.cuda_context import cublas_workspace_bytes
from memplan.catalog.multiprocessors import DEFAULT_MULTIPROCESSORS, multiprocessors
from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Head, family_under
from memplan.methods.config import TASK_TYPES
from memplan.optimizers.lomo import Lomo
from memplan.optimizers.torch_optim import TorchOptimizer
from memplan.prepare import Prepared
from memplan.recipe import Offloading, Stack, Task
from memplan.resolve import DEFAULT_TEXT_TOKENS, Resolved
from memplan.resolve_evaluation import eval_batches
from memplan.step import torchtune_loop
from memplan.step.adapters.adalora import orthogonality
from memplan.step.adapters.prefix import prefixed
from memplan.step.adapters.prompts import prompted
from memplan.step.allocator_run import AllocatorReport
from memplan.step.builder import Builder
from memplan.step.course import Course
from memplan.step.dim import guards
from memplan.step.evaluation import Evaluation, record_evaluation
from memplan.step.generation import Generation, record_generation
from memplan.step.grad_scaler import scaled_update
from memplan.step.merging import merging_events
from memplan.step.optimizer_step import OptimizerEvent, clipping_events
from memplan.step.ports import CannotUnfold
from memplan.step.recording import Recording, joined, record
from memplan.step.replay import Program
from memplan.step.run import Run
from memplan.step.saving import record_saving
from memplan.step.settings import StepSettings
from memplan.step.sums import Sums
from memplan.step.tensor import Tensor
from memplan.step.unsloth_loss import SMALL_CARD_BYTES
from memplan.step.walk import Resident, Walk, Walker

# Without a GPU in the recipe: the data-centre generation that most published figures come from.
DEFAULT_COMPUTE_CAPABILITY = (8, 0)
DEFAULT_WORKSPACE_BYTES = 8_519_680

# Of one step, in the allocator. From the second on they are alike; the third shows what the second left behind.
PLAYED_MICRO_STEPS = 3

# Steps that are kept for one model, method and optimizer: kernels, precision and guards multiply slowly.
KEPT_STEPS = 64


class RecordedStep:
    """A step for all numbers of B, S and T that take the same course.

    Args:
        course: what is recorded.
        resolved, prepared: the recipe, for what stays beside it.
    """

    def __init__(self, course: Course, resolved: Resolved, prepared: Prepared) -> None:
        self.course = course
        self.recordings = course.recordings
        self.walker = walker_of(course.recordings, resolved, prepared, course.sums)
        self._run = run_of(course.recordings, resolved, prepared)

    def sizes(self, settings: StepSettings) -> tuple[int, ...] | None:
        """As `Course.sizes`."""
        return self.course.sizes(settings)

    @cached_property
    def program(self) -> Program | None:
        """The run for the allocator; None where folded layers cannot be told apart."""
        try:
            return Program(self._run, self.course.written)
        except CannotUnfold:
            return None


def settings_of(resolved: Resolved, prepared: Prepared) -> StepSettings:
    """How the recipe's step is executed."""
    values = resolved.values
    mode, packs, torchtune = (
        values["activation_checkpointing"],
        bool(values["packing"]),
        values["stack"] is Stack.TORCHTUNE,
    )
    unsloth = values["stack"] is Stack.UNSLOTH  # its row of texts is described by their number and length
    gpu = resolved.gpu
    capability = gpu.compute_capability if gpu is not None else None
    checkpointing = ("non-reentrant" if mode is True else str(mode)) if mode else None
    if unsloth and mode is True:
        checkpointing = "reentrant"  # what use_gradient_checkpointing=True is
    return StepSettings(
        batch=1 if packs and not unsloth else values["micro_batch_size"],
        sequence=values["sequence_length"] * (values["micro_batch_size"] if packs and not unsloth else 1),
        target_sequence=values.get("target_length") or 0,
        autocast=resolved.autocast,
        attn_implementation=str(values["attn_implementation"]),
        checkpointing=checkpointing,
        offloading=values.get("activation_offloading"),
        padding=values["padding"] and not torchtune,  # its collator makes no mask
        compute_capability=capability or DEFAULT_COMPUTE_CAPABILITY,
        torch_version=_version(values["torch_version"]),
        workspace_bytes=_workspace_bytes(resolved),
        workspace_is_loaded=prepared.loading.blas is not None,
        keep_outputs=values["keep_outputs"],
        use_cache=values["use_cache"] and not mode,
        # modeling_utils.py, _activation_checkpointing_enable; Unsloth asks for it always.
        input_require_grads=(bool(mode) and not torchtune) or unsloth,
        virtual_tokens=prepared.adaptation.virtual_tokens,
        micro_batches=values["gradient_accumulation_steps"],
        grad_scaler=resolved.autocast is DType.FLOAT16,
        labels_by_row=resolved.task is Task.SEQUENCE_CLASSIFICATION,
        packing=packs,
        packed_text_tokens=values.get("packed_text_tokens") or DEFAULT_TEXT_TOKENS,
        flash_dtype=resolved.autocast or resolved.dtype,
        attention_mask=values["stack"] is Stack.TRL and not packs,
        stack=str(values["stack"]),
        liger_kernels=values["stack"] is Stack.LIGER,
        multiprocessors=multiprocessors(gpu) or DEFAULT_MULTIPROCESSORS,
        offloads_hidden_states=unsloth and bool(values.get("activation_offloading")),
        small_card=gpu is not None and gpu.usable_bytes <= SMALL_CARD_BYTES,
        loss=str(values["loss"]),
        in_backward=prepared.optimizer if prepared.optimizer.updates_in_backward else None,
    )


def _workspace_bytes(resolved: Resolved) -> int:
    return cublas_workspace_bytes(resolved.gpu) if resolved.gpu is not None else DEFAULT_WORKSPACE_BYTES


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def recorded_step(
    resolved: Resolved, prepared: Prepared, *, fold: bool | None = None
) -> tuple[RecordedStep, tuple[int, ...]]:
    """The step of a recipe, recorded now or before, and the sizes of its terms for the recipe's batch and sequence.

    Equal layers are executed once where `fold`; None leaves that to the family.
    """
    settings = settings_of(resolved, prepared)
    course = replace(
        settings,
        batch=1,
        sequence=1,
        target_sequence=min(settings.target_sequence, 1),
        micro_batches=min(settings.micro_batches, PLAYED_MICRO_STEPS),
    )
    beside = evaluation_of(resolved), generation_of(resolved), saves(resolved)
    merges = bool(resolved.values.get("merge_and_unload"))
    key = (course, beside, merges, resolved.values["max_grad_norm"], _empties_cache(resolved), fold)
    known = prepared.steps.setdefault(key, [])
    for step in known:
        sizes = step.sizes(settings)
        if sizes is not None:
            return step, sizes
    # All micro-steps that find gradients are recorded alike.
    recorded = replace(course, micro_batches=min(course.micro_batches, 2))
    courses = prepared.courses.setdefault((recorded, beside, fold), [])
    found = next(((entry, sizes) for entry in courses if (sizes := entry.sizes(settings)) is not None), None)
    if found is None:
        with guards() as conditions:
            made = recordings(resolved, prepared, fold=fold)
        fresh = Course(made, conditions)
        found = fresh, tuple(fresh.sums.recorded_sizes)
        _keep(courses, fresh)
    step = RecordedStep(found[0], resolved, prepared)
    _keep(known, step)
    return step, found[1]


def _keep(entries: list[Any], entry: Any) -> None:
    if len(entries) == KEPT_STEPS:
        entries.pop(0)
    entries.append(entry)


def recordings(resolved: Resolved, prepared: Prepared, *, fold: bool | None = None) -> tuple[Recording, ...]:
    """The first micro-step, with gradient accumulation one that finds gradients, and what happens beside the step.

    `fold` as in `recorded_step`.
    """
    stack = resolved.values["stack"]
    family = family_under(stack, resolved.config, resolved.task)
    head = Head(resolved.task, resolved.values.get("num_labels", 2))
    settings = settings_of(resolved, prepared)

    # The plain PeftModel of other tasks calls the base model past AdaLoRA's own forward.
    wraps = resolved.peft.get("task_type") or resolved.task in TASK_TYPES

    def forward(tape: Builder) -> Tensor:
        adaptation = prepared.adaptation
        if adaptation.prompt is not None:
            put = prompted if adaptation.prompt.key_values is None else prefixed
            return put(tape, adaptation.prompt, lambda t: family.forward(t, resolved.config, head))
        loss = family.forward(tape, resolved.config, head)
        regularized = adaptation.method == "adalora" and wraps and tape.cache is None
        return orthogonality(tape, adaptation.adapters, loss) if regularized else loss

    # AdaLoRA's term of the loss looks at every layer's factors; each layer's prefix is its own, and so are the keys and values
    # that adaption prompts compute beside its gradient; one layer leaves the first gradient of a tensor that several train;
    # LOMO updates a layer's last parameter within the next layer. Tensors on their way to the host stay while layers after
    # theirs run.
    adaptation = prepared.adaptation
    alone = (
        adaptation.method in ("adalora", "adaption_prompt")
        or adaptation.prefix_key_values > 0
        or adaptation.shares_trained
        or isinstance(settings.in_backward, Lomo)
        or settings.offloading == Offloading.SAVED_TENSORS
    )
    folds = family.folds and not alone if fold is None else fold
    micro_step = torchtune_loop.record if stack is Stack.TORCHTUNE else record
    made = [micro_step(forward, prepared.sites, settings, fold=folds)]
    if settings.offloads_hidden_states:
        made.insert(0, record(forward, prepared.sites, replace(settings, opening=True), fold=folds))
    if settings.micro_batches > 1:
        finds = settings.in_backward is None
        made.append(micro_step(forward, prepared.sites, replace(settings, accumulating=finds), fold=folds))
    evaluation = evaluation_of(resolved)
    if evaluation is not None:
        made.append(record_evaluation(forward, prepared.sites, settings, evaluation, fold=folds))
    generation = generation_of(resolved)
    if generation is not None:
        made.append(record_generation(forward, prepared.sites, settings, generation, fold=folds))
    if saves(resolved):
        made.append(record_saving(prepared.sites))
    return joined(*made)


def saves(resolved: Resolved) -> bool:
    """Whether a checkpoint is saved after every step."""
    return str(resolved.values.get("save_strategy", "no")) != "no"


def generation_of(resolved: Resolved) -> Generation | None:
    """What is generated after every step, if anything is."""
    values = resolved.values
    if not values.get("max_new_tokens"):
        return None
    return Generation(
        rows=values["per_device_eval_batch_size"],
        prompt_length=values["max_prompt_length"],
        new_tokens=values["max_new_tokens"],
        autocast="peft" not in values,
    )


def evaluation_of(resolved: Resolved) -> Evaluation | None:
    """What is evaluated after every step, if anything is."""
    values = resolved.values
    batches = eval_batches(values)
    if not batches:
        return None
    accumulated = values.get("eval_accumulation_steps") or len(batches) + 1
    return Evaluation(batches[:accumulated], values["prediction_loss_only"], accumulated <= len(batches))


def updating(resolved: Resolved, prepared: Prepared) -> tuple[list[OptimizerEvent], Sequence[OptimizerEvent]]:
    """What gradient clipping borrows, and the optimizer's states and what its step borrows; with a scaler all in one."""
    if prepared.optimizer.updates_in_backward:
        return [], ()
    policy = prepared.state.policy
    gradients: dict[DType, int] = {}
    for param in chain(*prepared.state.trained):
        dtype = policy.gradient_dtype(param.dtype)
        gradients[dtype] = gradients.get(dtype, 0) + 1
    clipping = clipping_events(gradients, resolved.values["max_grad_norm"])
    if resolved.values["stack"] is Stack.TORCHTUNE:
        clipping = [*torchtune_loop.SCALING, *clipping]
    if resolved.autocast is not DType.FLOAT16:
        return clipping, prepared.optimizer_events
    optimizer = prepared.optimizer
    is_fused = isinstance(optimizer, TorchOptimizer) and optimizer.implementation == "fused"
    return [], scaled_update(clipping, prepared.optimizer_events, is_fused=is_fused)


def walker_of(
    recordings: tuple[Recording, ...], resolved: Resolved, prepared: Prepared, sums: Sums | None = None
) -> Walker:
    """The walk over a step's recordings, on top of what stays; `sums` of an earlier one over the same."""
    state = prepared.state
    clipping, optimizer_events = updating(resolved, prepared)
    opening, micro_steps, moments = _parted(recordings)
    loading = prepared.loading.with_workspace(_workspace_bytes(resolved))
    loaded = Counter(state.loaded)
    loaded[Component.TEMPORARIES] += loading.end_bytes - prepared.loading.end_bytes
    return Walker(
        micro_steps[0],
        Resident(
            loaded=+loaded,
            gradients_bytes=state.gradients_bytes,
            load_transient_bytes=loading.peak_bytes - loading.end_bytes,
            settling_bytes=loading.end_bytes - loading.settled_bytes,
            adapter_buffers_bytes=sum(buffer.data_bytes for buffer in state.added_buffers),
        ),
        prepared.construction,
        clipping,
        optimizer_events,
        following=micro_steps[1] if len(micro_steps) > 1 else None,
        moments=moments,
        merging=merging_of(resolved, prepared),
        sums=sums,
        opening=opening,
        keeps_merged=prepared.optimizer.one_for_each,
    )


def merging_of(resolved: Resolved, prepared: Prepared) -> tuple[OptimizerEvent, ...] | None:
    """What merging the adapter after the last step borrows; None where it is not merged."""
    if not resolved.values.get("merge_and_unload"):
        return None
    buffers = {buffer.name: buffer.data_bytes for buffer in prepared.state.added_buffers}
    return merging_events(prepared.architecture, prepared.sites, buffers)


def _parted(
    recordings: Sequence[Recording],
) -> tuple[Recording | None, tuple[Recording, ...], tuple[Recording, ...]]:
    """A run's first micro-step where it goes otherwise than the others, a step's micro-steps, and what happens after it."""
    return (
        next((entry for entry in recordings if entry.is_opening), None),
        tuple(entry for entry in recordings if entry.moment is None and not entry.is_opening),
        tuple(entry for entry in recordings if entry.moment is not None),
    )


def walk(resolved: Resolved, prepared: Prepared, *, fold: bool | None = None) -> tuple[tuple[Recording, ...], Walk]:
    """The recordings of a step's micro-steps and the walk over them, made anew."""
    made = recordings(resolved, prepared, fold=fold)
    return made, walker_of(made, resolved, prepared).run()


def run_of(recordings: tuple[Recording, ...], resolved: Resolved, prepared: Prepared) -> Run:
    """The run as the allocator sees it."""
    clipping, optimizer_events = updating(resolved, prepared)
    opening, micro_steps, moments = _parted(recordings)
    later = min(resolved.values["gradient_accumulation_steps"], PLAYED_MICRO_STEPS) - 1
    loading = prepared.loading.with_workspace(_workspace_bytes(resolved))
    return Run(
        load_events=(*loading.events, *loading.settling),
        last_key=loading.last_key,
        micro_steps=(micro_steps[0], *micro_steps[1:] * later),
        construction=prepared.construction,
        clipping=clipping,
        optimizer_events=optimizer_events,
        empties_cache=_empties_cache(resolved),
        # Wherever bitsandbytes is imported; an adapter's library may import it too, which is not counted on.
        empties_cache_first=micro_steps[0].forgets_at is not None and resolved.quantization is not None,
        moments=moments,
        merging=merging_of(resolved, prepared),
        opening=opening,
    )


def _empties_cache(resolved: Resolved) -> bool:
    """Whether the cache is emptied after each step; one that is emptied more rarely is at its largest before it is."""
    return resolved.values.get("empty_cache_steps") == 1


def replay(resolved: Resolved, prepared: Prepared, step: RecordedStep, sizes: tuple[int, ...]) -> AllocatorReport:
    """What the caching allocator makes of the run: `step` as recorded, with the `sizes` of its terms."""
    program = step.program
    if program is None:
        step, sizes = recorded_step(resolved, prepared, fold=False)
        program = step.program
        assert program is not None, "a step whose layers are all executed has nothing to unfold"
    return program.play(sizes, expandable_segments=resolved.values["expandable_segments"])
