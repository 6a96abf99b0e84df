"""AdamW in other hands: StableAdamW (torch-optimi), GrokAdamW, AnyPrecisionAdamW (torchdistx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.optimizers.base import (
    SCALAR,
    Implementation,
    LayoutKey,
    Optimizer,
    ParamInfo,
    StateTensor,
    StepTemporaries,
)
from memplan.optimizers.options import as_bool, as_dtype, as_truthy
from memplan.optimizers.temporaries import StepScope, TensorGroup


@dataclass(frozen=True)
class StableAdamW(Optimizer):
    """torch-optimi's StableAdamW: two moments, and Kahan compensation for 16-bit parameters.

    The Triton kernels (the default on a GPU where Triton is installed) add a float32 scratch element per
    parameter, and a one-byte dummy where there is no compensation.

    Source: optimi/stableadamw.py, `StableAdamW._init_state`, `_triton_stableadamw`,
    `_single_param_stableadamw`; optimi/utils.py, `_default_to_triton`, torch-optimi 0.3.3.

    Attributes:
        kahan_sum: None compensates 16-bit parameters, False none.
        triton: False for a machine without Triton.
    """

    kahan_sum: bool | None = None
    triton: bool = True

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {"kahan_sum": as_truthy, "triton": as_bool}

    @property
    def implementation(self) -> Implementation:
        """Triton kernels, or a loop."""
        return "triton" if self.triton else "for_loop"

    @property
    def step_temporaries(self) -> StepTemporaries:
        """The kernels work in place."""
        return "none" if self.triton else "one_parameter_at_a_time"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """exp_avg, exp_avg_sq, eps_sq, kahan_comp and mean_square (the step is one int32 per group, on the CPU)."""
        tensors = [
            StateTensor("exp_avg", key.shape, key.dtype),
            StateTensor("exp_avg_sq", key.shape, key.dtype),
            StateTensor("eps_sq", SCALAR, key.dtype),
        ]
        if self.kahan_sum is not False and key.dtype.is_half:
            tensors.append(StateTensor("kahan_comp", key.shape, key.dtype))
        elif self.triton:
            tensors.append(StateTensor("kahan_comp", (1,), DType.UINT8))
        if self.triton:
            tensors.append(StateTensor("mean_square", (1,), DType.FLOAT32))
        return tuple(tensors)

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Without Triton: `grad.pow(2).div_(exp_avg_sq.maximum(eps_sq))`, then `exp_avg_sq.sqrt()`."""
        if self.triton:
            return
        for group in groups:
            for param in group:
                full = TensorGroup(param.elements, param.dtype)
                scope.bind("square", full)
                scope.bind("maximum", full)
                scope.release("square", "maximum")
                scope.bind("sqrt", full)
                scope.release("sqrt")


@dataclass(frozen=True)
class GrokAdamW(Optimizer):
    """GrokAdamW keeps its three averages on the CPU and copies them to the device for each parameter's turn.

    Source: grokadamw/grokadamw.py, `GrokAdamW._update_group`, grokadamw 0.1.2.
    """

    @property
    def step_temporaries(self) -> StepTemporaries:
        """Device copies of the averages, one parameter at a time."""
        return "one_parameter_at_a_time"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """exp_avg, exp_avg_sq and grok_ema, in host memory (in `group["state"]`, not in `optimizer.state`)."""
        return tuple(StateTensor(name, key.shape, key.dtype, "host") for name in ("exp_avg", "exp_avg_sq", "grok_ema"))

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """The copies and `grok_grad` are held into the next turn; `lamb * grok_ema` and the root are not."""
        for group in groups:
            for param in group:
                full = TensorGroup(param.elements, param.dtype)
                scope.bind("averages_copied", full, full)
                scope.rename("averages_copied", "averages")
                scope.bind("grok_ema", full)
                scope.bind("product", full)
                scope.bind("grok_grad", full)
                scope.release("product")
                scope.bind("sqrt", full)
                scope.release("sqrt")
            scope.leave()


@dataclass(frozen=True)
class AnyPrecisionAdamW(Optimizer):
    """torchdistx's AnyPrecisionAdamW: moments in chosen dtypes, with optional Kahan compensation.

    Source: torchdistx/optimizers/anyprecision_optimizer.py, `AnyPrecisionAdamW.step`, pytorch/torchdistx;
    defaults: transformers/trainer_optimizer.py, `_get_adamw_anyprecision`, transformers 5.23.
    """

    use_kahan_summation: bool = False
    momentum_dtype: DType = DType.FLOAT32
    variance_dtype: DType = DType.FLOAT32
    compensation_buffer_dtype: DType = DType.BFLOAT16

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        "use_kahan_summation": as_bool,
        "momentum_dtype": as_dtype,
        "variance_dtype": as_dtype,
        "compensation_buffer_dtype": as_dtype,
    }

    @property
    def step_temporaries(self) -> StepTemporaries:
        """A Python loop over parameters."""
        return "one_parameter_at_a_time"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """On the CPU step, on the device exp_avg, exp_avg_sq, compensation."""
        tensors = [
            StateTensor("step", SCALAR, DType.FLOAT32, "host"),
            StateTensor("exp_avg", key.shape, self.momentum_dtype),
            StateTensor("exp_avg_sq", key.shape, self.variance_dtype),
        ]
        if self.use_kahan_summation:
            tensors.append(StateTensor("compensation", key.shape, self.compensation_buffer_dtype))
        return tuple(tensors)

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """`(exp_avg_sq.sqrt() / denom_correction).add_(eps)`, and with Kahan a copy of the parameter."""
        for group in groups:
            for param in group:
                variance = TensorGroup(param.elements, self.variance_dtype)
                scope.bind("sqrt", variance)
                scope.bind("quotient", variance)
                scope.release("sqrt")
                scope.rename("quotient", "centered_variance")
                if self.use_kahan_summation:
                    scope.bind("temp_buffer", TensorGroup(param.elements, param.dtype))
