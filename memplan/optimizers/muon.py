"""torch.optim.Muon for hidden matrices, torch.optim.AdamW for everything else (torch 2.13)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.optimizers.base import LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries
from memplan.optimizers.options import as_bool
from memplan.optimizers.temporaries import StepScope, TensorGroup
from memplan.optimizers.torch_optim import Adam

MUON = "muon"
# torch/optim/_muon.py, DEFAULT_NS_STEPS.
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon takes 2-D parameters only; embeddings, the output head and vectors go to AdamW, as its docs ask.

    Source: torch/optim/_muon.py, `Muon._init_group`, `_single_tensor_muon`,
    `_zeropower_via_newtonschulz`, torch 2.13 ("Other parameters, such as bias, and embedding, should be
    optimized by a standard method such as AdamW").

    Attributes:
        nesterov: torch's default.
    """

    nesterov: bool = True

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {"nesterov": as_bool}

    reads_names: ClassVar[bool] = True

    @property
    def step_temporaries(self) -> StepTemporaries:
        """A loop over the matrices, and AdamW's lists for the rest."""
        return "one_parameter_at_a_time"

    def variant(self, param: ParamInfo) -> str:
        """`muon` for matrices that are neither an embedding nor the output head (`lm_head`)."""
        is_head = param.name.split(".")[-2:-1] == ["lm_head"]
        return MUON if len(param.shape) == 2 and not param.is_embedding and not is_head else ""

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """momentum_buffer for matrices, AdamW's states for the rest."""
        if key.variant == MUON:
            return (StateTensor("momentum_buffer", key.shape, key.dtype),)
        return self.companion().layout(key)

    def companion(self) -> Adam:
        """The AdamW that has the rest."""
        return Adam(self.row, weight_decay=self.weight_decay, path="foreach")

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Muon's step, then AdamW's; each makes a group's states before it updates the group."""
        for group in groups:
            matrices = [param for param in group if self.variant(param) == MUON]
            for param in matrices:
                scope.states(param)
            for param in matrices:
                self.record_one(scope, param)
            scope.leave()
        for group in groups:
            rest = [param for param in group if self.variant(param) != MUON]
            for param in rest:
                scope.states(param)
            self.companion().record_step(scope, [rest])
            scope.leave()

    def record_one(self, scope: StepScope, param: ParamInfo) -> None:
        """Nesterov's update, its bfloat16 copy, and Newton-Schulz: Gram matrices of the smaller side.

        `update` outlives the call of Newton-Schulz, in which `gram_matrix`, `gram_update` and
        `ortho_grad` are bound anew in every iteration.
        """
        full = TensorGroup(param.elements, param.dtype)
        half = TensorGroup(param.elements, DType.BFLOAT16)
        gram = TensorGroup(min(param.shape) ** 2, DType.BFLOAT16)
        if self.nesterov:
            scope.bind("update", full)
        else:
            scope.release("update")
        if param.dtype != DType.BFLOAT16:
            scope.bind("ortho_grad", half)
        for _ in range(NEWTON_SCHULZ_STEPS):
            scope.bind("gram_matrix", gram)
            scope.bind("gram_update", gram)
            scope.bind("ortho_grad", half)
        scope.release("gram_matrix", "gram_update")
        scope.rename("ortho_grad", "update")
