"""Unsloth's checkpoint, which keeps its layer's input in host memory.

Symbols: B micro batch, S sequence length, H hidden size, L layers.

Source: unsloth_zoo 2026.10.9 gradient_checkpointing.py (`UnslothCheckpointFunction`,
`initialize_unsloth_gradient_checkpointing`).

Known limits:
    Inputs are read back through two buffers, which stay. The second one is used from the second pass on where 512 MiB are
    free then, which is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.autograd import Returned
from memplan.step.reentrant import checkpoint_reentrant
from memplan.step.tensor import Tensor

if TYPE_CHECKING:
    from memplan.step.builder import Builder

# `MINIMUM_SIZE`, and as large the buffers are at first (`INITIAL_GPU_BUFFER_SIZE` in 16 bits).
LEAST_BYTES = 2 * 2**20
BUFFER, SECOND_BUFFER = "GPU_BUFFERS", "GPU_BUFFERS_B"


def checkpoint_offloaded(
    t: Builder, call: Callable[[Tensor], Returned], x: Tensor, *, is_last: bool, kept: object
) -> Returned:
    """`call(x)` without a graph; backward reads `x` back and runs it again. The last layer's input stays on the device.

    A run's first pass does not know which layer is the last.
    """
    size_bytes = x.shape[0] * x.shape[1] * x.shape[2] * x.dtype.itemsize_bytes
    offloads = size_bytes > LEAST_BYTES and (t.settings.opening or not is_last)
    if offloads:
        _make_buffers(t, size_bytes)
    return checkpoint_reentrant(t, call, x, kept=kept, saves_input=not offloads)


def _make_buffers(t: Builder, size_bytes: int) -> None:
    if BUFFER in t.workspaces:
        return
    if t.settings.opening:
        small = t.alloc((LEAST_BYTES,), DType.UINT8, "empty", Component.TEMPORARIES)
        t.workspaces[SECOND_BUFFER] = t.alloc((LEAST_BYTES,), DType.UINT8, "empty", Component.TEMPORARIES)
        t.workspaces[BUFFER] = t.alloc((size_bytes,), DType.UINT8, "resize_", Component.TEMPORARIES)
        t.outgrown.add(small.info.index)
        return
    # What the second one grows by.
    t.workspaces[BUFFER] = t.late["grown"] = t.alloc(
        (size_bytes - LEAST_BYTES,), DType.UINT8, "resize_", Component.TEMPORARIES
    )
