"""The end of a step: gradient clipping, the optimizer's temporaries, `zero_grad`.

Sources: torch 2.13 nn/utils/clip_grad.py (`clip_grad_norm_` with foreach), `memplan.optimizers` for the optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.optimizers import Optimizer, ParamInfo, StateTensor, StepEvent
from memplan.optimizers.lomo import Lomo
from memplan.optimizers.torch_optim import TorchOptimizer
from memplan.units import BLOCK_BYTES, round_to_block


@dataclass(frozen=True, slots=True)
class OptimizerEvent:
    """Tensors that come or go together.

    Attributes:
        label: the op or the library's variable; a free names the allocation that it ends.
        allocates: False for a free.
        blocks: (bytes rounded to blocks, how many) of each tensor.
        component: what they are.
        once: states, which only the first step allocates and nothing frees.
        loaded: of a free, whether it ends what loading allocated; the allocator's model keeps that.
        is_gradient: no allocation: from here on the label stands for a parameter's gradient, which it no longer has.
    """

    label: str
    allocates: bool
    blocks: tuple[tuple[int, int], ...]
    component: Component = Component.TEMPORARIES
    once: bool = False
    loaded: bool = False
    is_gradient: bool = False

    @property
    def change_bytes(self) -> int:
        """Live bytes gained (or, negative, given back)."""
        total = sum(size * count for size, count in self.blocks)
        return total if self.allocates else -total


def clipping_events(gradients: Mapping[DType, int], max_grad_norm: float) -> list[OptimizerEvent]:
    """`clip_grad_norm_`: a norm for every gradient, their stack, the total, and the scalars of the clip coefficient.

    Args:
        gradients: how many gradients there are of each dtype.
        max_grad_norm: 0 for no clipping.
    """
    count = sum(gradients.values())
    if not max_grad_norm or not count:
        return []
    width = max(dtype.itemsize_bytes for dtype in gradients)
    norms = ((BLOCK_BYTES, count),)
    stack = ((round_to_block(count * width), 1),)
    scalar = ((BLOCK_BYTES, 1),)
    return [
        OptimizerEvent("linalg_vector_norm", True, norms),
        OptimizerEvent("stack", True, stack),
        OptimizerEvent("total_norm", True, scalar),
        OptimizerEvent("stack", False, stack),
        OptimizerEvent("linalg_vector_norm", False, norms),
        OptimizerEvent("clip_coef", True, ((BLOCK_BYTES, 3),)),
        OptimizerEvent("clip_coef", False, ((BLOCK_BYTES, 3),)),
        OptimizerEvent("total_norm", False, scalar),
    ]


def step_events(optimizer: Optimizer, groups: Sequence[Sequence[ParamInfo]]) -> list[OptimizerEvent]:
    """States and temporaries of `optimizer.step()` on the parameter groups.

    torch.optim finishes one group, states included, before the next; the other optimizers are taken to make all states first
    unless their events say where they make each parameter's.
    States made when the optimizer is constructed (`lazy` is False) are not among them: see `construction_events`.

    Raises:
        UnsupportedError: the temporaries of this optimizer are not known.
    """
    groups = [group for group in groups if group]
    rounds = [[group] for group in groups] if isinstance(optimizer, TorchOptimizer) else [groups]
    found: list[OptimizerEvent] = []
    shared: set[StateTensor] = set()
    for together in rounds:
        events = optimizer.step_events(*together)
        if optimizer.lazy and all(event.param is None for event in events):
            found.append(_states(optimizer, [param for group in together for param in group], shared))
        for event in events:
            if event.param is not None:
                found.append(_states(optimizer, [event.param], shared))
                continue
            found.append(_temporary(event))
    return found


def hook_events(optimizer: Lomo, param: ParamInfo) -> list[OptimizerEvent]:
    """What LOMO's hook does for one parameter.

    Raises:
        UnsupportedError: the library cannot train such a parameter.
    """
    return [_temporary(event) for event in optimizer.hook(param)]


def _temporary(event: StepEvent) -> OptimizerEvent:
    blocks = tuple(
        (round_to_block(group.elements * group.dtype.itemsize_bytes), group.copies) for group in event.tensors
    )
    return OptimizerEvent(event.label, event.action == "alloc", blocks, is_gradient=event.action == "gradient")


def construction_events(optimizer: Optimizer, groups: Sequence[Sequence[ParamInfo]]) -> list[OptimizerEvent]:
    """States that the optimizer makes when it is constructed (Adagrad)."""
    if optimizer.lazy:
        return []
    return [_states(optimizer, [param for group in groups for param in group], set())]


def _states(optimizer: Optimizer, params: Sequence[ParamInfo], shared: set[StateTensor]) -> OptimizerEvent:
    """Every state tensor on the device, in the order of the parameters; what parameters share is made once."""
    blocks: list[tuple[int, int]] = []
    for param in params:
        for tensor in optimizer.state_tensors(param):
            if tensor.placement != "device" or tensor in shared:
                continue
            if tensor.shared:
                shared.add(tensor)
            blocks.append((round_to_block(tensor.storage_bytes), 1))
    return OptimizerEvent("optimizer states", True, tuple(blocks), Component.OPTIMIZER_STATES, once=True)
