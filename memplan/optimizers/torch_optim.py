"""torch.optim: Adam and AdamW, SGD, Adagrad, RMSprop (torch 2.13).

States and temporaries follow `_init_group` and `_multi_tensor_*` / `_single_tensor_*` of each file in
torch/optim/. On a CUDA device the foreach path is the default (`_default_to_fused_or_foreach`,
torch/optim/optimizer.py); `implementation` picks another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.optimizers.base import (
    SCALAR,
    Implementation,
    LayoutKey,
    Optimizer,
    ParamInfo,
    StateTensor,
    StepTemporaries,
    group_by_dtype,
    tensor_groups,
)
from memplan.optimizers.options import as_bool, as_number
from memplan.optimizers.temporaries import StepScope


def as_implementation(key: str, value: object) -> Implementation:
    """One of torch's three code paths.

    Raises:
        InvalidValueError: not one of them.
    """
    if value != "foreach" and value != "fused" and value != "for_loop":
        raise InvalidValueError(key, value, "one of foreach, fused, for_loop")
    return value


@dataclass(frozen=True)
class TorchOptimizer(Optimizer):
    """What the optimizers of torch.optim share: a choice of code path and a float32 step counter.

    Attributes:
        path: the code path asked for; None takes the catalog's.
    """

    path: Implementation | None = None

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {"implementation": as_implementation}

    @property
    def implementation(self) -> Implementation:
        """The code path that runs."""
        return self.path or self.row.implementation

    @property
    def step_temporaries(self) -> StepTemporaries:
        """Lists for foreach, one parameter at a time for the loop, none for fused kernels."""
        paths: dict[Implementation, StepTemporaries] = {
            "foreach": "tensor_lists",
            "for_loop": "one_parameter_at_a_time",
        }
        return paths.get(self.implementation, "none")

    def step_counter(self) -> StateTensor:
        """The step counter: a 0-d float32 tensor, on the CPU unless the fused kernel must read it.

        Source: `_init_group` ("special device hosting for step") and `_get_scalar_dtype`, torch 2.13.
        """
        return StateTensor("step", SCALAR, DType.FLOAT32, "device" if self.implementation == "fused" else "host")

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """One functional call (and so one scope) per parameter group."""
        for index, group in enumerate(groups):
            decays = index == 0 and self.weight_decay != 0
            if self.implementation == "foreach":
                for bucket in group_by_dtype(group).values():
                    self.record_foreach(scope, bucket, decays)
            elif self.implementation == "for_loop":
                for param in group:
                    self.record_one(scope, param, decays)
            scope.leave()

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """Temporaries of one turn of the loop in `_multi_tensor_*`: the parameters of one dtype."""

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """Temporaries of one turn of the loop in `_single_tensor_*`."""


@dataclass(frozen=True)
class Adam(TorchOptimizer):
    """torch.optim.Adam and AdamW: two moments of the parameter's dtype, a third with `amsgrad`.

    Source: torch/optim/adam.py, `Adam._init_group`, `_multi_tensor_adam`, `_single_tensor_adam`
    (AdamW derives from Adam with `decoupled_weight_decay=True`), torch 2.13.
    """

    amsgrad: bool = False
    decoupled_weight_decay: bool = True

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        **TorchOptimizer.OPTIONS,
        "amsgrad": as_bool,
        "decoupled_weight_decay": as_bool,
    }

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """step, exp_avg, exp_avg_sq and with amsgrad max_exp_avg_sq."""
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.amsgrad else ("exp_avg", "exp_avg_sq")
        return (self.step_counter(), *(StateTensor(name, key.shape, key.dtype) for name in names))

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """One square root per parameter, all alive at once; the last dtype's list lives until its name is bound anew.

        `_foreach_sqrt` of the second moments is the only list that the decoupled form makes: decay, the
        moments, the division, eps and the update all work in place. Adam's own weight decay first makes
        a list of gradients, deleted before the square roots come.
        """
        tensors = tensor_groups(bucket)
        if decays and not self.decoupled_weight_decay:
            scope.bind("device_grads", *tensors)
            scope.release("device_grads")
        scope.bind("exp_avg_sq_sqrt", *tensors)

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """`denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)`: two, beside the last turn's denom."""
        tensors = tensor_groups((param,))
        scope.release("grad")
        if decays and not self.decoupled_weight_decay:
            scope.bind("grad", *tensors)
        scope.bind("sqrt", *tensors)
        scope.bind("quotient", *tensors)
        scope.release("sqrt")
        scope.rename("quotient", "denom")


@dataclass(frozen=True)
class SGD(TorchOptimizer):
    """torch.optim.SGD: nothing, or one momentum buffer (a clone of the first gradient).

    Source: torch/optim/sgd.py, `SGD.step`, `_multi_tensor_sgd`, `_single_tensor_sgd`, torch 2.13.
    """

    momentum: float = 0.0
    nesterov: bool = False

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        **TorchOptimizer.OPTIONS,
        "momentum": as_number,
        "nesterov": as_bool,
    }

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise InvalidValueError("nesterov", True, "Nesterov momentum needs a momentum above zero")

    @property
    def step_temporaries(self) -> StepTemporaries:
        """None without weight decay, but for the loop's Nesterov term."""
        if self.implementation == "foreach":
            return "tensor_lists" if self.weight_decay else "none"
        if self.implementation == "for_loop" and (self.weight_decay or self.nesterov):
            return "one_parameter_at_a_time"
        return "none"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """The momentum buffer, if any; SGD has no step counter."""
        return (StateTensor("momentum_buffer", key.shape, key.dtype),) if self.momentum else ()

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """A list of gradients plus decay; with momentum it goes before the update unless Nesterov needs it."""
        scope.release("device_grads")
        if decays:
            scope.bind("device_grads", *tensor_groups(bucket))
            if self.momentum and not self.nesterov:
                scope.release("device_grads")

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """`grad.add(param)` and, with Nesterov, `grad.add(buf)`."""
        scope.release("grad")
        if decays:
            scope.bind("grad", *tensor_groups((param,)))
        if self.nesterov:
            scope.bind("grad", *tensor_groups((param,)))
        elif self.momentum:
            scope.release("grad")


@dataclass(frozen=True)
class Adagrad(TorchOptimizer):
    """torch.optim.Adagrad: one sum of squares, allocated when the optimizer is constructed.

    Source: torch/optim/adagrad.py, `Adagrad.__init__`, `_multi_tensor_adagrad`,
    `_single_tensor_adagrad`, torch 2.13.
    """

    lazy: ClassVar[bool] = False

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """A step counter and sum."""
        return (self.step_counter(), StateTensor("sum", key.shape, key.dtype))

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """Two lists: the square roots, and the scaled gradients (decay's list of gradients is used again)."""
        tensors = tensor_groups(bucket)
        if decays:
            scope.bind("device_grads", *tensors)
        scope.bind("std", *tensors)
        if decays:
            scope.rename("device_grads", "numerator")
        else:
            scope.bind("numerator", *tensors)

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """`state_sum.sqrt()`, beside decay's gradient; the loop variable `grad` drops the last one."""
        tensors = tensor_groups((param,))
        scope.release("grad")
        if decays:
            scope.bind("grad", *tensors)
        scope.bind("std", *tensors)


@dataclass(frozen=True)
class RMSprop(TorchOptimizer):
    """torch.optim.RMSprop: a mean square, with momentum a buffer more, centered a mean more.

    Source: torch/optim/rmsprop.py, `RMSprop._init_group`, `_multi_tensor_rmsprop`,
    `_single_tensor_rmsprop`, torch 2.13.
    """

    momentum: float = 0.0
    centered: bool = False

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        **TorchOptimizer.OPTIONS,
        "momentum": as_number,
        "centered": as_bool,
    }

    def __post_init__(self) -> None:
        if self.implementation == "fused":
            raise InvalidValueError("implementation", "fused", "torch.optim.RMSprop has only foreach and for_loop")

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """step, square_avg, then momentum_buffer and grad_avg as asked."""
        names = ["square_avg"]
        if self.momentum > 0:
            names.append("momentum_buffer")
        if self.centered:
            names.append("grad_avg")
        return (self.step_counter(), *(StateTensor(name, key.shape, key.dtype) for name in names))

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """One list of roots, beside decay's list of gradients."""
        tensors = tensor_groups(bucket)
        scope.release("grouped_grads")
        if decays:
            scope.bind("grouped_grads", *tensors)
        scope.bind("avg", *tensors)

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """`square_avg.sqrt()` or `.addcmul(...)`, beside decay's gradient."""
        tensors = tensor_groups((param,))
        scope.release("grad")
        if decays:
            scope.bind("grad", *tensors)
        scope.bind("avg", *tensors)
