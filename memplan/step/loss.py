"""Losses on logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.attention import AttentionOps, detached
from memplan.step.tensor import Node, Shape, Tape, Tensor


class LossOps(AttentionOps):
    """The heads' losses; what they allocate counts as `logits_and_loss`."""

    def causal_lm_loss(self, logits: Tensor) -> Tensor:
        """transformers' `ForCausalLMLoss`: float32 logits, labels shifted by padding, mean cross-entropy."""
        with self.component(Component.LOGITS_AND_LOSS):
            batch, length, vocabulary = logits.shape
            logits = ops.to(self, logits, DType.FLOAT32)
            padded = self.new((batch, length + 1), DType.INT64, "constant_pad_nd")
            # `labels[..., 1:].contiguous()`: a single row is contiguous as it is.
            labels = padded if batch == 1 else self.new((batch, length), DType.INT64, "clone")
            logits = self.view(logits, (batch * length, vocabulary))
            loss = cross_entropy(self, logits, labels)
            del padded
            return loss

    def classification_loss(self, logits: Tensor, *, upcast: bool = False) -> Tensor:
        """Cross-entropy over the labels of a classification head: logits [..., C], cast to float32 first with `upcast`."""
        self.outputs.append(detached(logits))
        with self.component(Component.LOGITS_AND_LOSS):
            return cross_entropy(self, ops.to(self, logits, DType.FLOAT32) if upcast else logits, None)


def cross_entropy(t: LossOps, logits: Tensor, labels: Tensor | None) -> Tensor:
    """`F.cross_entropy` with class indices: log_softmax saves its result, nll_loss saves the same and the labels.

    log_softmax is asked for the logits' own type, which autocast leaves alone; nll_loss runs in float32 under autocast
    (torch 2.13 LossNLL.cpp, `cross_entropy_loss`; autocast_mode.h).
    """
    log_probabilities = log_softmax(t, logits)  # an argument of nll_loss: it lives until that has returned
    if t.settings.autocast is None:
        return nll_loss(t, log_probabilities, labels)
    return nll_loss(t, ops.to(t, log_probabilities, DType.FLOAT32), labels)


def log_softmax(t: LossOps, x: Tensor) -> Tensor:
    """`x.log_softmax(-1)`: saves its result."""
    return ops.unary(t, "_log_softmax", x, save="output", backward_op="_log_softmax_backward_data")


def nll_loss(t: LossOps, log_probabilities: Tensor, labels: Tensor | None) -> Tensor:
    """`nll_loss` with mean reduction: a scalar; its backward is a full-size tensor of zeros with one entry a row."""
    shape, dtype = log_probabilities.shape, log_probabilities.dtype
    out = t.alloc((), dtype, "nll_loss_forward")
    total_weight = t.alloc((), dtype, "nll_loss_forward")
    node = t.record(
        "nll_loss", (log_probabilities,), (log_probabilities, labels, total_weight), _nll_backward, (shape, dtype)
    )
    return Tensor(t, (), dtype, out, node)


def _nll_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "nll_loss_backward")
    del kept
    return (out,)
