"""One micro-step of torchtune's recipes on a tape: tokens are counted, and sums run over the micro-batches of a step.

Symbols: B micro batch, S sequence length.

Source: torchtune 0.6.1 recipes/full_finetune_single_device.py and lora_finetune_single_device.py (`train`, `_loss_step`).

Known limits:
    What is only logged after an update is left out: a few scalars. Single GPU, not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step.autograd import backward
from memplan.step.builder import Builder
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.recording import Recording
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Tensor
from memplan.units import BLOCK_BYTES

# `training.scale_grads(model, 1 / num_tokens)`: the reciprocal, and what it is as a float.
SCALING = (
    OptimizerEvent("1 / num_tokens", True, ((BLOCK_BYTES, 2),)),
    OptimizerEvent("1 / num_tokens", False, ((BLOCK_BYTES, 2),)),
)


def record(
    forward: Callable[[Builder], Tensor], sites: Mapping[str, Site], settings: StepSettings, *, fold: bool = True
) -> Recording:
    """Run a recipe's loss and its backward on a tape; as `memplan.step.recording.record`."""
    tape = Builder(settings, sites, fold=fold)
    tape.enter(Phase.FORWARD)
    with tape.component(Component.LOGITS_AND_LOSS):
        ignored = tape.new((tape.batch, 1), DType.INT64, "full")  # stays, as cuBLAS's workspaces do
        sums = [tape.new((), dtype, "add") for dtype in (DType.INT64, DType.FLOAT32) if settings.accumulating]
    tokens = _feed(tape)
    with tape.component(Component.LOGITS_AND_LOSS):
        counted = tape.new((tape.batch, tape.sequence), DType.BOOL, "ne")
        count = tape.new((), DType.INT64, "sum")
        del counted
        if not settings.accumulating:
            sums.append(tape.new((), DType.INT64, "add"))
    found = [forward(tape)]
    with tape.component(Component.LOGITS_AND_LOSS):
        loss = found.pop() * count
        if not settings.accumulating:
            sums.append(tape.new((), DType.FLOAT32, "add"))
    tape.enter(Phase.BACKWARD)
    with tape.component(Component.LOGITS_AND_LOSS):
        grad = tape.new((), DType.FLOAT32, "ones_like")
    node, loss.node = loss.node, None
    backward(tape, node, grad)
    del grad
    tape.enter(Phase.OPTIMIZER_STEP)
    assert loss.storage is not None
    assert ignored.storage is not None
    stays = {storage.info.index for storage in tape.workspaces.values()} | {ignored.storage.info.index}
    result = Recording(
        tape.infos, tape.segments, frozenset({loss.storage.info.index}), frozenset(stays), tuple(tape.ports)
    )
    del tokens, sums, loss, ignored, count, node
    return result


def _feed(tape: Builder) -> Tensor:
    """The batch on the device; its labels are the tape's until they are shifted."""
    shape = (tape.batch, tape.tokens)
    with tape.component(Component.BUFFERS):
        tokens = tape.new(shape, DType.INT64, "tokens")
        tape.labels = tape.new(shape, DType.INT64, "labels")
    return tokens
