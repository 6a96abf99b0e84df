"""Adafactor, twice: transformers' (`optim="adafactor"`) and torch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.optimizers.base import SCALAR, LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries, tensor_groups
from memplan.optimizers.temporaries import StepScope, TensorGroup
from memplan.optimizers.torch_optim import TorchOptimizer


def factored_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the row and column statistics of a tensor [..., rows, columns]: [..., rows] and [..., columns]."""
    return shape[:-1], shape[:-2] + shape[-1:]


def compute_dtype(dtype: DType) -> DType:
    """Type of Adafactor's arithmetic and states: 16-bit gradients are cast to float32."""
    return DType.FLOAT32 if dtype.is_half else dtype


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """transformers' Adafactor as the Trainer makes it (no first moment, no relative step).

    States are float32 for 16-bit parameters. `RMS` starts as an int and is a 0-d device tensor from the
    first step on.

    Source: transformers/optimization.py, `Adafactor.step`; transformers/trainer_optimizer.py,
    `_get_adafactor`, transformers 5.23.
    """

    @property
    def step_temporaries(self) -> StepTemporaries:
        """A Python loop over parameters."""
        return "one_parameter_at_a_time"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """exp_avg_sq_row and exp_avg_sq_col, or exp_avg_sq below two dimensions, and RMS."""
        return adafactor_state(key.shape, compute_dtype(key.dtype))

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """All groups in one scope: the names of one turn hold their tensors into the next."""
        for group in groups:
            for param in group:
                self.record_one(scope, param)

    def record_one(self, scope: StepScope, param: ParamInfo) -> None:
        """One turn of the loop in `Adafactor.step`."""
        full = TensorGroup(param.elements, compute_dtype(param.dtype))
        for name in ("grad", "p_data_fp32"):
            scope.release(name)
            if param.dtype.is_half:
                scope.bind(name, full)
            if name == "grad":
                scope.states(param)
        record_update(scope, param.shape, full.dtype)
        scope.bind("negated", full)  # p_data_fp32.add_(-update)
        scope.release("negated")


def record_update(scope: StepScope, shape: tuple[int, ...], dtype: DType) -> None:
    """From the squared gradient to `update`: through the row and column factors, or `exp_avg_sq.rsqrt()`.

    Source: transformers/optimization.py, `Adafactor.step` and `_approx_sq_grad`, transformers 5.23 (GaLore
    and AdaLomo carry copies).
    """
    full = TensorGroup(prod(shape), dtype)
    scope.bind("square", full)  # update = (grad**2) + eps
    scope.bind("update", full)
    scope.release("square")
    if len(shape) < 2:
        scope.bind("update", full)
        return
    row, column = (TensorGroup(prod(sizes), dtype) for sizes in factored_shapes(shape))
    for mean in (row, column):
        scope.bind("mean", mean)
        scope.release("mean")
    scope.bind("row_mean", TensorGroup(prod(shape[:-2]), dtype))
    scope.bind("r_factor", row)
    scope.release("row_mean")
    scope.bind("c_factor", column)
    scope.bind("outer_product", full)
    scope.release("r_factor", "c_factor")
    scope.rename("outer_product", "update")


def adafactor_state(shape: tuple[int, ...], dtype: DType) -> tuple[StateTensor, ...]:
    """State of one gradient of `shape`: factored from two dimensions on.

    Source: transformers/optimization.py, `Adafactor.step`, transformers 5.23.
    """
    rms = StateTensor("RMS", SCALAR, dtype)
    if len(shape) >= 2:
        row, column = factored_shapes(shape)
        return (StateTensor("exp_avg_sq_row", row, dtype), StateTensor("exp_avg_sq_col", column, dtype), rms)
    return (StateTensor("exp_avg_sq", shape, dtype), rms)


@dataclass(frozen=True)
class TorchAdafactor(TorchOptimizer):
    """torch.optim.Adafactor: row and column variances in the gradient's dtype; the loop is its default.

    Source: torch/optim/_adafactor.py, `Adafactor._init_group`, `_single_tensor_adafactor`,
    `_multi_tensor_adafactor`, torch 2.13.
    """

    def __post_init__(self) -> None:
        if self.implementation == "fused":
            raise InvalidValueError("implementation", "fused", "torch.optim.Adafactor has only foreach and for_loop")

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """step, then row_var [..., rows, 1] and col_var [..., 1, columns], or variance below two dimensions."""
        if len(key.shape) < 2:
            return (self.step_counter(), StateTensor("variance", key.shape, key.dtype))
        return (
            self.step_counter(),
            StateTensor("row_var", (*key.shape[:-1], 1), key.dtype),
            StateTensor("col_var", (*key.shape[:-2], 1, key.shape[-1]), key.dtype),
        )

    def record_foreach(self, scope: StepScope, bucket: Sequence[ParamInfo], decays: bool) -> None:
        """Matrices and vectors apart; `var_estimates` becomes `updates`, which the next turn binds anew."""
        del decays  # in place
        for is_matrix in dict.fromkeys(len(param.shape) > 1 for param in bucket):
            members = [param for param in bucket if (len(param.shape) > 1) is is_matrix]
            if is_matrix:
                for name, axis in (("row_means", -1), ("col_means", -2)):
                    scope.bind(name, *(TensorGroup(p.elements // p.shape[axis], p.dtype) for p in members))
                    scope.release(name)
                scope.bind("var_estimates", *tensor_groups(members))
                scope.bind("row_var_means", *(TensorGroup(prod(p.shape[:-2]), p.dtype) for p in members))
                scope.release("row_var_means")
            else:
                scope.bind("grads_squared", *tensor_groups(members))
                scope.release("grads_squared")
                scope.bind("var_estimates", *tensor_groups(members))
            # updates = var_estimates: a second name for the list, which holds it until the next turn's end.
            scope.rename("var_estimates", "updates")

    def record_one(self, scope: StepScope, param: ParamInfo, decays: bool) -> None:
        """`update` is the estimate itself, worked on in place; vectors also square the gradient."""
        del decays  # in place
        tensors = tensor_groups((param,))
        if len(param.shape) > 1:
            scope.bind("row_mean", TensorGroup(param.elements // param.shape[-1], param.dtype))
            scope.bind("col_mean", TensorGroup(param.elements // param.shape[-2], param.dtype))
        else:
            scope.bind("grad_squared", *tensors)
        scope.bind("var_estimate", *tensors)
        if len(param.shape) > 1:
            scope.bind("row_var_mean", TensorGroup(prod(param.shape[:-2]), param.dtype))
            scope.release("row_var_mean")
        scope.rename("var_estimate", "update")
