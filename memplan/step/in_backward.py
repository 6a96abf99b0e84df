"""Optimizers that step inside backward: what their hooks make and free while gradients arrive.

Two kinds. A hook after accumulation (`register_post_accumulate_grad_hook`) has an optimizer for each parameter, which makes its
states the first time, borrows what its step borrows and drops the gradient at once. LOMO's hook runs before accumulation
(`Tensor.register_hook`) and finds the gradient that was accumulated last, so that each lives until the next one has been
computed; the last of all is used after backward.

Sources: torch 2.13 torch/csrc/autograd/functions/accumulate_grad.h (the hooks' places); torchtune 0.6.1 training/memory.py,
`register_optim_in_bwd_hooks`; transformers 5.23 trainer_optimizer.py, `_setup_low_rank_optimizer`; lomo-optim 0.1.1.

Known limits:
    States are taken to be made where a parameter's first gradient of the first micro-step arrives, and never again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memplan.dtypes import DType
from memplan.optimizers import Optimizer, ParamInfo
from memplan.optimizers.lomo import Lomo
from memplan.step.optimizer_step import OptimizerEvent, hook_events, step_events

if TYPE_CHECKING:
    from memplan.step.tensor import Leaf, Storage, Tape


class Hooks(ABC):
    """What an optimizer does while gradients of trained parameters arrive.

    Args:
        optimizer: whose rules say what is made and borrowed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._known: dict[ParamInfo, Sequence[OptimizerEvent]] = {}

    def arrives(self, tape: Tape) -> None:
        """A parameter's gradient has been computed, and is about to be accumulated."""
        return

    @abstractmethod
    def accumulated(self, tape: Tape, leaf: Leaf) -> None:
        """A parameter has a gradient now."""

    def finish(self, tape: Tape) -> None:
        """Backward is over."""
        return

    @abstractmethod
    def events(self, param: ParamInfo) -> Sequence[OptimizerEvent]:
        """What the update of one parameter makes, borrows and frees, its gradient included."""

    def update(self, tape: Tape, leaf: Leaf) -> None:
        """The update of one parameter, which leaves it without a gradient."""
        param = ParamInfo(leaf.shape, leaf.dtype)
        if param not in self._known:
            self._known[param] = self.events(param)
        outer_module, outer_component = tape.module, tape.scope_component
        tape.module, tape.scope_component = leaf.name, None
        held: dict[str, list[Storage]] = {}
        for event in self._known[param]:
            if event.is_gradient:
                assert leaf.grad is not None
                held[event.label], leaf.grad = [leaf.grad], None
            elif not event.allocates:
                del held[event.label]
            elif event.once:
                if not leaf.has_states:
                    tape.states += self._made(tape, event)
                    leaf.has_states = True
            else:
                held[event.label] = self._made(tape, event)
        held.clear()
        leaf.grad = None
        tape.module, tape.scope_component = outer_module, outer_component

    @staticmethod
    def _made(tape: Tape, event: OptimizerEvent) -> list[Storage]:
        op = event.label.partition("#")[0]
        return [
            tape.alloc((size,), DType.UINT8, op, event.component) for size, count in event.blocks for _ in range(count)
        ]


class AfterAccumulation(Hooks):
    """An optimizer for each parameter."""

    def accumulated(self, tape: Tape, leaf: Leaf) -> None:
        """It steps and drops the gradient."""
        self.update(tape, leaf)

    def events(self, param: ParamInfo) -> Sequence[OptimizerEvent]:
        """The step of an optimizer that has one parameter."""
        return step_events(self.optimizer, [[param]])


class BeforeAccumulation(Hooks):
    """LOMO's hook, which every parameter has: whichever gradient comes next, it updates the parameter before."""

    def __init__(self, optimizer: Lomo) -> None:
        super().__init__(optimizer)
        self.lomo = optimizer
        self._waiting: list[Leaf] = []

    def arrives(self, tape: Tape) -> None:
        """The parameter whose gradient was accumulated last is updated."""
        for leaf in self._waiting:
            self.update(tape, leaf)
        self._waiting.clear()

    def accumulated(self, tape: Tape, leaf: Leaf) -> None:
        """Its gradient waits for the next one."""
        self._waiting.append(leaf)

    def finish(self, tape: Tape) -> None:
        """`fused_backward` calls the hook once more."""
        self.arrives(tape)

    def events(self, param: ParamInfo) -> Sequence[OptimizerEvent]:
        """One turn of the loop in `fuse_update`."""
        return hook_events(self.lomo, param)


def hooks_of(optimizer: Optimizer | None) -> Hooks | None:
    """The hooks of an optimizer that steps inside backward; None where there is none."""
    if optimizer is None:
        return None
    return BeforeAccumulation(optimizer) if isinstance(optimizer, Lomo) else AfterAccumulation(optimizer)
