"""Precision policies: what "mixed precision" means for weights, gradients and optimizer states of a trained parameter.

| policy              | weights | gradients | states incl. master copy (Adam) | who does it |
|---------------------|--------:|----------:|--------------------------------:|-------------|
| `fp32`              |       4 |         4 |                               8 | plain PyTorch |
| `amp`               |       4 |         4 |                               8 | `bf16=True` on a model loaded in float32 |
| `pure`              |       2 |         2 |                               4 | a model loaded in 16 bits, plain optimizer |
| `master`            |       2 |         2 |                              12 | Apex O2, DeepSpeed: 2 + 2 + (4 + 8) |
| `master-fp32-grads` |       2 |         4 |                              12 | Megatron, DeepSpeed with fp32 gradients |

A parameter that is float32 already (PEFT's adapters, casted norms) has no master copy and its gradient is float32 under
every policy.

Sources: torch.amp and torch.optim 2.13; DeepSpeed runtime/bf16_optimizer.py; Rajbhandari et al., arXiv 1910.02054 section 3.1;
Megatron-LM core/optimizer/distrib_optimizer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.recipe import Precision


@dataclass(frozen=True, slots=True)
class Policy:
    """How a trained parameter is kept.

    Attributes:
        precision: the policy's name.
        has_master: whether 16-bit parameters have a float32 copy that the optimizer updates.
        float32_gradients: whether gradients of 16-bit parameters are kept in float32.
    """

    precision: Precision
    has_master: bool = False
    float32_gradients: bool = False

    def gradient_dtype(self, dtype: DType) -> DType:
        """Element type of the gradient of a parameter of `dtype`."""
        return DType.FLOAT32 if self.float32_gradients and dtype.is_half else dtype

    def master_bytes(self, dtype: DType) -> int:
        """Bytes per element of the master copy of a parameter of `dtype`; 0 where there is none."""
        return 4 if self.has_master and dtype.is_half else 0

    def state_dtype(self, dtype: DType) -> DType:
        """Element type of the tensor that the optimizer updates."""
        return DType.FLOAT32 if self.has_master and dtype.is_half else dtype


_POLICIES = {
    Precision.FP32: Policy(Precision.FP32),
    Precision.AMP: Policy(Precision.AMP),
    Precision.PURE: Policy(Precision.PURE),
    Precision.MASTER: Policy(Precision.MASTER, has_master=True),
    Precision.MASTER_FP32_GRADS: Policy(Precision.MASTER_FP32_GRADS, has_master=True, float32_gradients=True),
}


def policy_of(precision: Precision) -> Policy:
    """The policy of a precision."""
    return _POLICIES[precision]
