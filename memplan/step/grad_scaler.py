"""`torch.amp.GradScaler`, which scales the loss where autocast's type is float16: scalars, each in a block of its own.

Source: torch 2.13 amp/grad_scaler.py (`scale`, `unscale_`, `_check_inf_per_device`, `step`, `update`).
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.tensor import Tape, Tensor
from memplan.units import BLOCK_BYTES


def scale_loss(t: Tape, loss: Tensor) -> Tensor:
    """`scaler.scale(loss)`; the first time, the scale and the counter of steps without infinities are made, and stay."""
    for name, dtype in (("scale", DType.FLOAT32), ("growth_tracker", DType.INT32)):
        t.workspaces[name] = t.alloc((), dtype, "full", Component.TEMPORARIES)
    with t.component(Component.LOGITS_AND_LOSS):
        return ops.scale(t, loss)


def scaled_update(
    clipping: Sequence[OptimizerEvent], optimizer: Sequence[OptimizerEvent], *, is_fused: bool
) -> list[OptimizerEvent]:
    """`unscale_`, clipping, `scaler.step(optimizer)`, `scaler.update()`.

    Unscaling makes the inverse scale, the flag for infinities and a copy of each on the device; the flag's copy stays until
    `update`. Where gradients are not unscaled before, a fused optimizer does it, and checking for infinities makes as much.

    Args:
        clipping: what clipping borrows.
        optimizer: what the optimizer's step makes and borrows.
        is_fused: whether the optimizer takes the scale and the flag itself (`_step_supports_amp_scaling`).
    """
    handed = [OptimizerEvent("scaler.step", True, ((BLOCK_BYTES, 1 if clipping else 2),))] if is_fused else []
    return [
        OptimizerEvent("unscale_", True, ((BLOCK_BYTES, 3),)),
        OptimizerEvent("found_inf", True, ((BLOCK_BYTES, 1),)),
        OptimizerEvent("unscale_", False, ((BLOCK_BYTES, 3),)),
        *clipping,
        *handed,
        *optimizer,
        *(OptimizerEvent(event.label, False, event.blocks) for event in handed),
        OptimizerEvent("found_inf", False, ((BLOCK_BYTES, 1),)),
    ]
