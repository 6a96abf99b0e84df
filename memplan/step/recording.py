"""One micro-step on a tape: the batch, forward, loss, backward.

Symbols: B micro batch, S sequence length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.optimizers.lomo import AdaLomo
from memplan.recipe import Offloading, Stack
from memplan.step import ops
from memplan.step.autograd import backward
from memplan.step.builder import Builder
from memplan.step.grad_scaler import scale_loss
from memplan.step.in_backward import hooks_of
from memplan.step.offloader import Offloader
from memplan.step.ports import Ledger
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Leaf, Segment, Shape, Storage, StorageInfo, Tensor
from memplan.step.unsloth import LENGTHS


@dataclass(frozen=True)
class Recording:
    """What one micro-step allocated and freed.

    Attributes:
        infos: every storage, by index.
        segments: events in order of time; equal layers stand once, with their count.
        named: indices of what the training loop's variables hold until the next step has made its own: the loss, and
            the outputs where they are kept.
        ports: for each folded run, indices of what its executed layer took and gave.
        outlived: indices of what an offloader holds of the graph until backward of the next micro-step comes to its segment
            number `forgets_at`.
        forgets_at: see there.
        host_copies: shape, dtype and number of what is copied to the host to wait for backward.
        workspaces: indices of cuBLAS's workspaces and what else stays for the whole run, such as the states of an optimizer
            that steps inside backward: allocated in the first step only.
        late: of those what a run's second micro-step allocates.
        is_opening: whether this is how a run's first micro-step goes, unlike all others.
        moment: the phase beside the step that this is; None for a micro-step.
        empties_cache: whether `torch.cuda.empty_cache()` is called at its end.
    """

    infos: list[StorageInfo]
    segments: list[Segment]
    named: frozenset[int]
    workspaces: frozenset[int]
    ports: tuple[tuple[int, int], ...]
    moment: Phase | None = None
    empties_cache: bool = False
    outlived: frozenset[int] = frozenset()
    forgets_at: int | None = None
    host_copies: tuple[tuple[Shape, DType, int], ...] = ()
    late: frozenset[int] = frozenset()
    is_opening: bool = False

    def lasting(self, passes: int) -> frozenset[int]:
        """Of the workspaces those that are made where this is a run's first, second, third ... micro-step."""
        return self.workspaces if passes == 1 else self.late if passes == 2 else frozenset()


def record(
    forward: Callable[[Builder], Tensor], sites: Mapping[str, Site], settings: StepSettings, *, fold: bool = True
) -> Recording:
    """Run `forward` and its backward on a tape.

    Args:
        forward: a family's forward pass; returns the loss.
        sites: what stands at each module path.
        settings: batch, sequence, precision, kernels.
        fold: execute equal layers once instead of one by one.
    """
    tape = Builder(settings, sites, fold=fold)
    tape.enter(Phase.FORWARD)
    inputs = feed(tape)
    if settings.offloading == Offloading.SAVED_TENSORS:
        tape.offloader, tape.input_ids = Offloader(tape), inputs[0]
    loss = forward(tape)
    if not settings.keep_outputs:
        tape.outputs.clear()  # Trainer.compute_loss returns the loss alone
    if settings.micro_batches > 1 and settings.stack != Stack.UNSLOTH:
        tape.outputs.append(loss)
        with tape.component(Component.LOGITS_AND_LOSS):
            loss = ops.scale(tape, loss, "div")
    if not settings.keep_outputs:
        tape.outputs.clear()
    tape.casts.clear()  # autocast's cache ends with its context
    if settings.grad_scaler:
        if settings.keep_outputs and settings.micro_batches == 1:
            tape.outputs.append(loss)
        loss = scale_loss(tape, loss)
    tape.enter(Phase.BACKWARD)
    tape.hooks = hooks_of(settings.in_backward)
    differentiated = loss
    with tape.component(Component.LOGITS_AND_LOSS):
        if isinstance(settings.in_backward, AdaLomo):
            differentiated = ops.scale(tape, loss)  # fused_backward: loss * self.loss_scale
        grad = tape.new((), DType.FLOAT32, "ones_like")
    node, differentiated.node, loss.node = differentiated.node, None, None
    backward(tape, node, grad)
    offloader, tape.offloader, tape.input_ids = tape.offloader, None, None
    if offloader is not None:
        offloader.close()
    del grad
    if tape.hooks is not None:
        tape.hooks.finish(tape)
    del differentiated
    # Its last node holds the graph below: the inputs that were made leaves, with their gradients.
    outlived = list(_leaves(tape)) if offloader is not None else []
    if settings.keep_outputs is not True:
        tape.held.clear()  # Trainer.training_step returns a detached loss: the graph goes here
        tape.outputs.clear()
    tape.enter(Phase.OPTIMIZER_STEP)
    held = [loss, *tape.outputs]
    named = frozenset(entry.storage.info.index for entry in held if entry.storage is not None)
    workspaces = frozenset(storage.info.index for storage in (*tape.workspaces.values(), *tape.states)) | tape.outgrown
    if settings.keep_outputs is True:
        fed = {tensor.storage.info.index for tensor in inputs if tensor.storage is not None}
        named |= _kept(tape, workspaces | fed)
    result = Recording(
        tape.infos,
        tape.segments,
        named,
        workspaces,
        tuple(tape.ports),
        outlived=frozenset(storage.info.index for storage in outlived),
        forgets_at=offloader.forgets_at if offloader is not None else None,
        host_copies=tuple(tape.host_copies),
        late=frozenset(storage.info.index for storage in tape.late.values()),
        is_opening=settings.opening,
    )
    del held, outlived
    tape.held.clear()
    tape.outputs.clear()
    tape.limits = None
    del inputs, loss, node, offloader
    return result


def feed(tape: Builder) -> tuple[Tensor, ...]:
    """The batch on the device: tokens, labels, and a mask where there is padding."""
    settings = tape.settings
    tokens = (tape.batch, tape.tokens)
    length = tape.target_sequence if settings.target_sequence else tape.tokens
    labelled = (tape.batch,) if settings.labels_by_row else (tape.batch, length)
    with tape.component(Component.BUFFERS):
        fed = [tape.new(tokens, DType.INT64, "input_ids"), tape.new(labelled, DType.INT64, "labels")]
        if settings.packing:
            fed.append(tape.new(tokens, DType.INT64, "position_ids"))
        if settings.packing and settings.stack == "trl":
            limits = (tape.packed_texts() + 1,)
            fed += [tape.new(limits, DType.INT32, f"cu_seq_lens_{side}") for side in "qk"]
            tape.limits = _storage(fed[-2]), _storage(fed[-1])
            fed.append(tape.new(tokens, DType.INT32, "seq_idx"))
        if settings.padding or settings.attention_mask:
            fed.append(tape.new(tokens, DType.INT64, "attention_mask"))
        if settings.stack == Stack.UNSLOTH:
            # The texts' lengths, which its cache keeps until the next batch is there, and Trainer's count of labels.
            tape.workspaces[LENGTHS] = tape.alloc((tape.batch,), DType.INT32, LENGTHS)
            fed.append(tape.new((), DType.INT64, "num_items_in_batch"))
    return tuple(fed)


def _leaves(tape: Builder) -> Iterator[Storage]:
    """What `tape.held` has of tensors that were made to require a gradient."""
    for entry in tape.held:
        if isinstance(entry, tuple):
            storage, leaf = cast(tuple[Storage | None, Leaf], entry)
            yield from (kept for kept in (storage, leaf.grad) if kept is not None)


def _storage(tensor: Tensor) -> Storage:
    assert tensor.storage is not None
    return tensor.storage


def _kept(tape: Builder, others: frozenset[int]) -> frozenset[int]:
    """Everything alive besides `others` and gradients: what kept outputs hold, by themselves and through their graph.

    The graph holds inputs that were made leaves, with their gradients, and the arguments of reentrant checkpoints.
    """
    alive: Counter[int] = Counter()
    ledger = Ledger(tape.infos, tape.ports)
    for segment in tape.segments:
        ledger.play(alive, segment, 0, segment.count)
    gone = {index for index, count in alive.items() if count <= 0}
    return frozenset(
        index for index in alive.keys() - gone - others if tape.infos[index].component is not Component.GRADIENTS
    )


def joined(*recordings: Recording) -> tuple[Recording, ...]:
    """The recordings over one list of storages, so that what one leaves can be alive while another is played."""
    infos: list[StorageInfo] = []
    moved = []
    for recording in recordings:
        moved.append(_moved(recording, len(infos)) if infos else recording)
        infos += moved[-1].infos
    return tuple(replace(recording, infos=infos) for recording in moved)


def _moved(recording: Recording, offset: int) -> Recording:
    """The recording with storages numbered from `offset`."""

    def move(event: int) -> int:
        return event + offset if event >= 0 else event - offset

    return replace(
        recording,
        infos=[replace(info, index=info.index + offset) for info in recording.infos],
        segments=[replace(segment, events=[move(event) for event in segment.events]) for segment in recording.segments],
        named=frozenset(index + offset for index in recording.named),
        workspaces=frozenset(index + offset for index in recording.workspaces),
        late=frozenset(index + offset for index in recording.late),
        outlived=frozenset(index + offset for index in recording.outlived),
        ports=tuple((given + offset, result + offset) for given, result in recording.ports),
    )
