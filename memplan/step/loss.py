"""Losses on logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.attention import AttentionOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


class LossOps(AttentionOps):
    """The heads' losses."""

    def causal_lm_loss(self, logits: Tensor) -> Tensor:
        """Transformers' `ForCausalLMLoss`: float32 logits, log_softmax, nll_loss."""
        with self.component(Component.LOGITS_AND_LOSS):
            logits = ops.to(self, logits, DType.FLOAT32)
            rows = (logits.shape[0] * logits.shape[1], logits.shape[2])
            return cross_entropy(self, self.view(logits, rows))

    def classification_loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy over the labels of a classification head: logits [..., C]."""
        with self.component(Component.LOGITS_AND_LOSS):
            return cross_entropy(self, logits)


def cross_entropy(t: LossOps, logits: Tensor) -> Tensor:
    """`F.cross_entropy` with class indices: log_softmax saves its result, nll_loss the log-probabilities (the same)."""
    return nll_loss(t, log_softmax(t, logits))


def log_softmax(t: LossOps, x: Tensor) -> Tensor:
    """`x.log_softmax(-1)`: saves its result."""
    return ops.unary(t, "_log_softmax", x, save="output", backward_op="_log_softmax_backward_data")


def nll_loss(t: LossOps, log_probabilities: Tensor) -> Tensor:
    """`nll_loss` with mean reduction: a scalar; its backward is a full-size tensor of zeros with one entry a row."""
    total_weight = t.alloc((1,), DType.FLOAT32, "nll_loss_forward")
    node = t.record(
        "nll_loss", (log_probabilities,), (log_probabilities, total_weight), _nll_backward, (log_probabilities.shape,)
    )
    return t.new((1,), DType.FLOAT32, "nll_loss_forward", node)


def _nll_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = [node.stored(index) for index in range(len(node.saved))]
    out = tape.new(shape, DType.FLOAT32, "nll_loss_backward")
    del kept
    return (out,)
