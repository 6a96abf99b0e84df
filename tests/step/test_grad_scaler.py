"""What scaling the loss adds: scalars that stay, and those around the optimizer's step."""

from __future__ import annotations

import pytest

from memplan.estimate import Component
from memplan.step.grad_scaler import scaled_update
from memplan.step.optimizer_step import OptimizerEvent
from memplan.units import BLOCK_BYTES

CLIPPING = [OptimizerEvent("norms", True, ((512, 4),)), OptimizerEvent("norms", False, ((512, 4),))]
STATES = OptimizerEvent("states", True, ((4096, 2),), Component.OPTIMIZER_STATES, once=True)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("clipping", [CLIPPING, []])
def test_nothing_but_the_states_is_left(clipping: list[OptimizerEvent], is_fused: bool) -> None:
    events = scaled_update(clipping, [STATES], is_fused=is_fused)
    assert sum(event.change_bytes for event in events) == STATES.change_bytes


@pytest.mark.parametrize(
    ("clipping", "is_fused", "scalars"), [(CLIPPING, True, 2), ([], True, 3), (CLIPPING, False, 1), ([], False, 1)]
)
def test_scalars_alive_while_the_optimizer_runs(clipping: list[OptimizerEvent], is_fused: bool, scalars: int) -> None:
    events = scaled_update(clipping, [STATES], is_fused=is_fused)
    before = events[: events.index(STATES)]
    assert sum(event.change_bytes for event in before) == scalars * BLOCK_BYTES


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    labels = [event.label for event in scaled_update(CLIPPING, [STATES], is_fused=False)]
    assert labels.index("unscale_") < labels.index("norms") < labels.index("states")
