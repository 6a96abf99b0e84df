"""Temporaries of `step()`: what comes and goes, in the order of the library's Python scopes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from memplan.dtypes import DType
from memplan.units import round_to_block

if TYPE_CHECKING:
    from memplan.optimizers.base import ParamInfo


class TensorGroup(NamedTuple):
    """`copies` device tensors of `elements` elements each."""

    elements: int
    dtype: DType
    copies: int = 1

    @property
    def allocated_bytes(self) -> int:
        """Bytes in the caching allocator: each tensor rounded up to 512 bytes."""
        return self.copies * round_to_block(self.elements * self.dtype.itemsize_bytes)


class StepEvent(NamedTuple):
    """A temporary (or a list of them) coming to life or going inside `step()`.

    Attributes:
        action: `alloc` or `free`; every allocation is freed before `step()` returns. `states` is where the first step makes
            the states of one parameter, which are not among the tensors. `gradient` is where a hook takes the parameter's
            gradient from it: what is freed under that label is the gradient.
        label: the library's variable name and a running number, unique among what is alive.
        tensors: what is allocated or freed together.
        param: whose states are made.
    """

    action: Literal["alloc", "free", "states", "gradient"]
    label: str
    tensors: tuple[TensorGroup, ...]
    param: ParamInfo | None = None

    @property
    def allocated_bytes(self) -> int:
        """Bytes in the caching allocator that the event takes or gives back."""
        return sum(group.allocated_bytes for group in self.tensors)


def peak_bytes(events: Iterable[StepEvent]) -> int:
    """Largest number of bytes alive at once along `events`, each tensor rounded to 512 bytes."""
    live = peak = 0
    for event in events:
        live += event.allocated_bytes if event.action == "alloc" else -event.allocated_bytes
        peak = max(peak, live)
    return peak


class StepScope:
    """Records temporaries the way Python scopes keep them: a name holds its value until it is bound again."""

    def __init__(self) -> None:
        self.events: list[StepEvent] = []
        self._bound: dict[str, StepEvent] = {}
        self._serial = 0

    def bind(self, name: str, *tensors: TensorGroup) -> None:
        """`name = <new tensors>`: the right side is allocated first, then the old value of `name` goes."""
        self._serial += 1
        event = StepEvent("alloc", f"{name}#{self._serial}", tensors)
        self.events.append(event)
        self.release(name)
        self._bound[name] = event

    def states(self, param: ParamInfo) -> None:
        """The first step makes the states of `param` here; optimizers that do not say so make all of them before."""
        self.events.append(StepEvent("states", "states", (), param))

    def take_gradient(self, name: str) -> None:
        """`name = p.grad; p.grad = None`: nothing is allocated, and the gradient lives as long as the name."""
        self._serial += 1
        event = StepEvent("gradient", f"{name}#{self._serial}", ())
        self.events.append(event)
        self.release(name)
        self._bound[name] = event

    def release(self, *names: str) -> None:
        """`del name`, or binding `name` to something that is not a temporary."""
        for name in names:
            event = self._bound.pop(name, None)
            if event is not None:
                self.events.append(StepEvent("free", event.label, event.tensors))

    def rename(self, old: str, new: str) -> None:
        """`new = old; del old`: the old value of `new` goes, nothing is allocated."""
        event = self._bound.pop(old, None)
        self.release(new)
        if event is not None:
            self._bound[new] = event

    def leave(self) -> None:
        """Return from the function: every local name goes."""
        self.release(*tuple(self._bound))
