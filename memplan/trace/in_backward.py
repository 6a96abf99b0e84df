"""Optimizers that step inside backward: LOMO's, transformers' layer-wise ones, and one optimizer for each parameter.

Sources: accelerate 1.15 accelerator.py (`backward`, `lomo_backward`) and optimizer.py (`AcceleratedOptimizer.step`);
transformers 5.23 trainer_optimizer.py (`_setup_low_rank_optimizer`); torchtune 0.6.1 training/memory.py
(`register_optim_in_bwd_hooks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# AdaLomo keeps its states by the names of parameters (lomo_optim/adalomo.py, `AdaLomo.__init__`).
_ADALOMO_STATES = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")


class OneForEach(torch.optim.Optimizer):  # type: ignore[misc]
    """An optimizer for each parameter, which steps and drops the gradient as soon as that has been accumulated.

    Args:
        optimizers: the parameters, with the optimizer of each.
    """

    def __init__(self, optimizers: dict[nn.Parameter, torch.optim.Optimizer]) -> None:
        super().__init__(list(optimizers), {})
        self.optimizers = optimizers

        def step(parameter: nn.Parameter) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(step)

    def step(self, closure: Any = None) -> None:
        """Nothing is left to do."""


def backward(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """`Accelerator.backward`: LOMO's own backward pass, which updates the last parameter after it, or the tensor's."""
    fused = getattr(optimizer, "fused_backward", None)
    if fused is not None:
        fused(loss, optimizer.defaults["lr"])
    else:
        loss.backward()


def step(optimizer: torch.optim.Optimizer) -> None:
    """`AcceleratedOptimizer.step`: nothing for LOMO's."""
    if not hasattr(optimizer, "fused_backward"):
        optimizer.step()


def states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter | str, str, Any]]:
    """(parameter, or its name; key; value) of everything that the optimizer keeps for parameters."""
    for key in _ADALOMO_STATES:
        for name, value in getattr(optimizer, key, {}).items():
            yield name, key, value
    parts = getattr(optimizer, "optimizers", None) or getattr(optimizer, "optimizer_dict", None) or {}
    for part in (optimizer, *parts.values()):
        for parameter, state in part.state.items():
            for key, value in state.items() if isinstance(state, dict) else ():
                yield parameter, key, value
