"""Optimizers that step inside backward: what keeps one from being walked, and what is taken for granted of one."""

from __future__ import annotations

from itertools import chain

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers.lomo import AdaLomo, Lomo
from memplan.prepare import Prepared
from memplan.recipe import Loss, Stack, Task
from memplan.resolve import Resolved
from memplan.step.optimizer_step import hook_events, step_events


def unsupported_in_backward(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What no rule covers of updates within backward."""
    optimizer = prepared.optimizer
    if not optimizer.updates_in_backward:
        return []
    if not isinstance(optimizer, Lomo) and not optimizer.one_for_each:
        return [f"{resolved.values['optim']}, which updates parameters within backward: no trace confirms its step"]
    found = []
    stack = resolved.values["stack"]
    if stack not in (Stack.TRANSFORMERS, Stack.TRL, Stack.LIGER):
        found.append(f"an optimizer that steps inside backward under stack {stack}: no trace confirms it")
    if resolved.values.get("activation_offloading"):
        found.append("activation_offloading with an optimizer that steps inside backward: no trace confirms it")
    try:
        for param in dict.fromkeys(chain(*prepared.state.trained)):
            if isinstance(optimizer, Lomo):
                hook_events(optimizer, param)
            else:
                step_events(optimizer, [[param]])
    except UnsupportedError as error:
        found.append(error.message)
    is_float32 = resolved.task is Task.CAUSAL_LM and resolved.values["loss"] == Loss.DEFAULT
    scales = isinstance(optimizer, Lomo) and not isinstance(optimizer, AdaLomo)
    if scales and resolved.dtype is DType.FLOAT16 and resolved.autocast is None and not is_float32:
        found.append("lomo with a loss in float16, for which it demands a gradient norm that accelerate never computes")
    return found


def granted_in_backward(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What there is to know of such an optimizer, in sentences."""
    optimizer, values = prepared.optimizer, resolved.values
    if not optimizer.updates_in_backward:
        return []
    found = [
        "each parameter is updated inside backward, as soon as its gradient is there, and the gradient dropped: there is no "
        "moment at which all gradients exist"
    ]
    if isinstance(optimizer, Lomo):
        if values["max_grad_norm"]:
            found.append(
                f"max_grad_norm clips nothing: Trainer clips after backward, when {optimizer.name} has dropped all"
            )
        if values["gradient_accumulation_steps"] > 1:
            found.append(
                f"{optimizer.name} updates parameters after every micro-batch: gradient_accumulation_steps accumulates nothing"
            )
    if prepared.state.frozen:
        found.append(f"{optimizer.name} keeps states of frozen parameters as well")
    return found
