"""LOMO and AdaLomo: the update happens inside backward, gradient by gradient (lomo-optim 0.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers.adafactor import record_update
from memplan.optimizers.base import LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries
from memplan.optimizers.temporaries import StepEvent, StepScope, TensorGroup

_ROW_AND_COLUMN = "lomo_optim/adalomo.py keeps a row and a column vector, of the first two sizes of the shape"
_SCALAR = TensorGroup(1, DType.FLOAT32)


@dataclass(frozen=True)
class Lomo(Optimizer):
    """No state at all. A hook on each parameter applies the gradients that are there, and drops them.

    `step_events` gives what the hook allocates for each parameter; it happens within backward.

    Source: lomo_optim/lomo.py, `Lomo.fuse_update`, lomo-optim 0.1.1.
    """

    @property
    def step_temporaries(self) -> StepTemporaries:
        """float32 copies of one gradient and one parameter, where those are 16-bit."""
        return "one_parameter_at_a_time"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """Nothing."""
        return ()

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Each parameter in a call of the hook of its own."""
        for group in groups:
            for param in group:
                self.record_hook(scope, param)
                scope.leave()

    def hook(self, param: ParamInfo) -> tuple[StepEvent, ...]:
        """What the hook allocates and frees where it finds a gradient of `param`, the gradient included.

        Raises:
            UnsupportedError: the library cannot train such a parameter.
        """
        scope = StepScope()
        self.record_hook(scope, param)
        scope.leave()
        return tuple(scope.events)

    def record_hook(self, scope: StepScope, param: ParamInfo) -> None:
        """`p.grad.to(float32)` and `p.data.to(float32)` are copies unless the tensors are float32 already."""
        self.record_gradient(scope, param)
        if param.dtype != DType.FLOAT32:
            scope.bind("p_fp32", TensorGroup(param.elements, DType.FLOAT32))

    @staticmethod
    def record_gradient(scope: StepScope, param: ParamInfo) -> None:
        """`grad_fp32 = p.grad.to(float32); p.grad = None`."""
        if param.dtype == DType.FLOAT32:
            scope.take_gradient("grad_fp32")
            return
        scope.bind("grad_fp32", TensorGroup(param.elements, DType.FLOAT32))
        scope.take_gradient("grad")
        scope.release("grad")


@dataclass(frozen=True)
class AdaLomo(Lomo):
    """float32 row and column statistics as in Adafactor, for every parameter of the model, frozen or not.

    Source: lomo_optim/adalomo.py, `AdaLomo.__init__` and `fuse_update`, lomo-optim 0.1.1.
    """

    lazy: ClassVar[bool] = False
    covers_frozen_parameters: ClassVar[bool] = True

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """exp_avg_sq for vectors; for all others exp_avg_sq_row and exp_avg_sq_col, of the first two sizes of the shape.

        Raises:
            UnsupportedError: a parameter without dimensions.
        """
        if not key.shape:
            raise UnsupportedError("adalomo cannot be made for a parameter without dimensions", hint=_ROW_AND_COLUMN)
        if len(key.shape) == 1:
            return (StateTensor("exp_avg_sq", key.shape, DType.FLOAT32),)
        return (
            StateTensor("exp_avg_sq_row", (key.shape[0],), DType.FLOAT32),
            StateTensor("exp_avg_sq_col", (key.shape[1],), DType.FLOAT32),
        )

    def record_hook(self, scope: StepScope, param: ParamInfo) -> None:
        """The update of Adafactor on a float32 gradient, then a float32 copy of the parameter; scalars in blocks of their own.

        Raises:
            UnsupportedError: more than two dimensions.
        """
        if len(param.shape) > 2:
            raise UnsupportedError(
                f"adalomo cannot train a parameter of shape {list(param.shape)}", hint=_ROW_AND_COLUMN
            )
        self.record_gradient(scope, param)
        record_update(scope, param.shape, DType.FLOAT32)
        # update.div_((self._rms(update) / self.clip_threshold).clamp_(min=1.0))
        scope.bind("norm", _SCALAR)
        scope.bind("rms", _SCALAR)
        scope.release("norm")
        scope.bind("ratio", _SCALAR)
        scope.release("rms", "ratio")
        if param.dtype != DType.FLOAT32:
            scope.bind("p_fp32", TensorGroup(param.elements, DType.FLOAT32))
        scope.bind("norm", _SCALAR)
        scope.bind("p_rms", _SCALAR)
        scope.release("norm")
        # max(self.eps[1], p_rms), which is the tensor unless the parameter is all but zero.
        scope.bind("greater", _SCALAR)
        scope.release("greater")
        scope.bind("lr", _SCALAR)
        scope.bind("negated", _SCALAR)  # alpha=-lr
        scope.release("negated")
