"""Pooling of image patches.

Symbols: B images, P patches, H hidden size, M pooled tokens.

Source: transformers 5.23 models/gemma3/modeling_gemma3.py (`Gemma3MultiModalProjector`), torch 2.13
tools/autograd/derivatives.yaml (`avg_pool2d`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.step.split import copy
from memplan.step.tensor import Node, Shape, Tape, Tensor


def average_pool(t: Tape, x: Tensor, tokens: int) -> Tensor:
    """[B, P, H] turned to [B, H, P] (a copy), averaged over squares, and turned back: [B, M, H]; saves its input."""
    batch, patches, hidden = x.shape
    turned = copy(t, x, (batch, hidden, patches))
    node = t.record("avg_pool2d", (turned,), (turned,), _average_backward, (turned.shape,))
    pooled = t.new((batch, hidden, tokens), x.dtype, "avg_pool2d", node)
    return t.view(pooled, (batch, tokens, hidden))


def _average_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "avg_pool2d_backward")
    del kept
    return (out,)
