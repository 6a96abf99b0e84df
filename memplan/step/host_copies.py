"""Tensors that wait for backward in host memory: what their copies take there, and what they are when they come back.

Sources: torch/autograd/graph.py, `save_on_cpu` (2.13): a pinned copy, contiguous, made on the compute stream, and a new tensor
on the device wherever the saved one is asked for. ATen/core/CachingHostAllocator.h: pinned memory is had in powers of two.

Symbols: B micro batch, S sequence length, T target length of encoder-decoder models.

Known limits:
    All copies of a micro-step are alive together at the end of forward, and none of them before the next one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.dim import scale_of, terms_of
from memplan.step.tensor import Leaf, Node, Shape, Tape, Tensor

# A copy by what it is of, and how many layers make one like it.
Copied = tuple[Shape, DType, int]


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A tensor's copy in host memory.

    Attributes:
        shape, dtype: of the tensor.
        node: what made it; coming back does not take it out of the graph.
    """

    shape: Shape
    dtype: DType
    node: Node | Leaf | None

    def bring_back(self, tape: Tape) -> Tensor:
        """The tensor on the device again, in memory of its own."""
        storage = tape.alloc(self.shape, self.dtype, "to", Component.ACTIVATIONS)
        return Tensor(tape, self.shape, self.dtype, storage, self.node)


def move_to_host(tape: Tape, x: Tensor) -> HostCopy:
    """Copies `x`; the tape counts the copy once for every layer that makes one like it."""
    tape.host_copies.append((x.shape, x.dtype, tape.repeats))
    return HostCopy(x.shape, x.dtype, x.node)


def host_bytes(copies: Sequence[Copied]) -> Callable[[int, int, int], int]:
    """Bytes of host memory that the copies of one micro-step take, as a function of B, S and T."""
    parts = []
    for shape, dtype, count in copies:
        size = dtype.itemsize_bytes
        for length in shape:
            size *= scale_of(length)
        product = "*".join((str(size), *(term for length in shape for term in terms_of(length))))
        parts.append(f"{count}*(1<<({product}-1).bit_length())")
    found: Callable[[int, int, int], int]
    found = eval(f"lambda B, S, T: {'+'.join(parts) or '0'}", {"__builtins__": {}})  # of our own numbers only
    return found
