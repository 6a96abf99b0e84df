"""Schedule-free AdamW, RAdam and SGD (schedulefree 1.4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.optimizers.base import LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries, tensor_groups
from memplan.optimizers.options import as_bool
from memplan.optimizers.temporaries import StepScope


@dataclass(frozen=True)
class ScheduleFree(Optimizer):
    """A copy `z` of each parameter, and for the Adam forms a second moment, in the parameter's dtype.

    Source: `step` of schedulefree/adamw_schedulefree.py, radam_schedulefree.py, sgd_schedulefree.py,
    schedulefree 1.4.1 (`foreach` is on by default).

    Attributes:
        second_moment: the AdamW and RAdam forms keep one, SGD does not.
    """

    second_moment: bool = True

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {"second_moment": as_bool}

    @property
    def step_temporaries(self) -> StepTemporaries:
        """The Adam forms make a list of denominators."""
        return "tensor_lists" if self.second_moment else "none"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """`z` and exp_avg_sq (counters are Python numbers in the group)."""
        z = StateTensor("z", key.shape, key.dtype)
        return (z, StateTensor("exp_avg_sq", key.shape, key.dtype)) if self.second_moment else (z,)

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """`denom`, one tensor per parameter; a group's list lives until the next group's is made.

        RAdam makes it once its rectification is defined (from the sixth step on with beta2 = 0.999).
        """
        for group in groups:
            for param in group:
                scope.states(param)
            if self.second_moment and group:
                scope.bind("denom", *tensor_groups(group))
