"""Evaluation between two steps on a tape: batches without gradients, and what Trainer's loop collects of them.

Mirrors transformers 5.23 trainer.py (`evaluation_loop`, `prediction_step`) and trainer_pt_utils.py (`EvalLoopContainer`:
what is collected is concatenated anew for every batch), accelerate's `convert_outputs_to_fp32` under autocast.

Symbols: E rows of a batch, S sequence length, V vocabulary.

Known limits:
    Batches between the first ones and the last two are taken to allocate nothing but what is collected of them.
    Trainer's counts of tokens, some scalars on the device, are left out, as in the training step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step.attention import detached
from memplan.step.builder import Builder
from memplan.step.dim import Dim
from memplan.step.recording import Recording, feed
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Tensor

# Batches that are executed one by one; of more of them the first ones and the last two.
EXECUTED_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is evaluated after a step.

    Attributes:
        batches: rows of each batch, up to the first time that what is collected goes to the host.
        prediction_loss_only: losses alone are collected, not logits and labels.
        empties_cache: what is collected goes to the host within the evaluation, and the cache is emptied then.
    """

    batches: tuple[int, ...]
    prediction_loss_only: bool
    empties_cache: bool


class _Collected:
    """`EvalLoopContainer`: tensors of all batches so far, each list concatenated anew."""

    def __init__(self, tape: Builder) -> None:
        self.tape = tape
        self.tensors: list[Tensor] = []

    def add(self, tensors: Sequence[Tensor]) -> None:
        if not self.tensors:
            self.tensors = list(tensors)
            return
        # `type(tensors)(nested_concat(t, n) for ...)`: all new ones are there before the old ones go.
        self.tensors = [_cat(self.tape, old, new) for old, new in zip(self.tensors, tensors, strict=True)]


def _cat(tape: Builder, old: Tensor, new: Tensor) -> Tensor:
    with tape.component(Component.LOGITS_AND_LOSS):
        return tape.new((old.shape[0] + new.shape[0], *old.shape[1:]), old.dtype, "cat")


def record_evaluation(
    forward: Callable[[Builder], Tensor],
    sites: Mapping[str, Site],
    settings: StepSettings,
    evaluation: Evaluation,
    *,
    fold: bool = True,
) -> Recording:
    """Run the evaluation's batches through `forward` on a tape without gradients.

    Args:
        forward: a family's forward pass; returns the loss.
        sites: what stands at each module path.
        settings: of the training step; checkpointing and dropout are off, cuBLAS's workspace is there.
        evaluation: what is evaluated.
        fold: execute equal layers once instead of one by one.
    """
    tape = Builder(replace(settings, checkpointing=None, workspace_bytes=0), sites, fold=fold)
    tape.grad_enabled = tape.training = False
    tape.enter(Phase.EVALUATION)
    losses_so_far, logits_so_far, labels_so_far = (_Collected(tape) for _ in range(3))
    inputs: tuple[Tensor, ...] = ()
    kept: _Kept | None = None
    example: _Kept | None = None
    for number, rows in enumerate(evaluation.batches):
        tape.batch = Dim(rows, "E")
        if EXECUTED_BATCHES - 2 <= number < len(evaluation.batches) - 2:
            assert example is not None
            kept = example.again(tape)
        else:
            inputs = feed(tape)
            kept = _prediction_step(tape, forward, inputs[1], evaluation.prediction_loss_only)
            example = kept.without_storage()
        with tape.component(Component.LOGITS_AND_LOSS):
            losses = tape.new((tape.batch,), kept.loss.dtype, "repeat")
        kept = replace(kept, loss=losses)
        losses_so_far.add([losses])
        del losses
        logits_so_far.add(kept.logits)
        labels_so_far.add(kept.labels)
    losses_so_far.tensors = logits_so_far.tensors = labels_so_far.tensors = []
    del kept, inputs
    return Recording(
        tape.infos,
        tape.segments,
        frozenset(),
        frozenset(),
        tuple(tape.ports),
        Phase.EVALUATION,
        evaluation.empties_cache,
    )


@dataclass(frozen=True)
class _Kept:
    """What a batch leaves in the loop's variables."""

    loss: Tensor
    logits: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()

    def without_storage(self) -> _Kept:
        """The same shapes, keeping nothing alive."""
        return _Kept(_shape_of(self.loss), tuple(map(_shape_of, self.logits)), tuple(map(_shape_of, self.labels)))

    def again(self, tape: Builder) -> _Kept:
        """New tensors of these shapes."""
        with tape.component(Component.LOGITS_AND_LOSS):
            logits = tuple(tape.new(entry.shape, entry.dtype, "logits") for entry in self.logits)
        with tape.component(Component.BUFFERS):
            labels = tuple(tape.new(entry.shape, entry.dtype, "labels") for entry in self.labels)
        return _Kept(self.loss, logits, labels)


def _shape_of(x: Tensor) -> Tensor:
    return Tensor(x.tape, x.shape, x.dtype, None)


def _prediction_step(
    tape: Builder, forward: Callable[[Builder], Tensor], labels: Tensor, prediction_loss_only: bool
) -> _Kept:
    loss = forward(tape)
    tape.casts.clear()  # autocast's cache ends with its context
    tape.held.clear()
    outputs = list(tape.outputs)
    tape.outputs.clear()
    if tape.settings.autocast is not None:
        outputs = [_to_float32(tape, entry) for entry in (loss, *outputs)][1:]
    with tape.component(Component.LOGITS_AND_LOSS):
        mean = tape.new((), loss.dtype, "mean")
    if prediction_loss_only:
        return _Kept(mean)
    logits = tuple(entry for entry in outputs if not _is_cache(entry))
    return _Kept(mean, logits, (labels,))


def _to_float32(tape: Builder, x: Tensor) -> Tensor:
    """`convert_to_fp32`: 16-bit tensors of the output object are copied; a cache is none of its tensors."""
    if not x.dtype.is_half or _is_cache(x):
        return x
    with tape.component(Component.LOGITS_AND_LOSS):
        return detached(tape.new(x.shape, DType.FLOAT32, "_to_copy"))


def _is_cache(x: Tensor) -> bool:
    """Whether it is part of past key/values, which are no prediction (`keys_to_ignore_at_inference`)."""
    return x.storage is not None and (x.storage.info.component is Component.KV_CACHE or x.dtype is DType.INT64)
