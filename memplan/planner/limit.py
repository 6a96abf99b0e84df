"""What a plan must stay within: a GPU's usable memory, a budget in bytes, or a budget on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import Gpu, get_gpu
from memplan.errors import InputError, InvalidValueError
from memplan.estimate import Estimate, Fits, VerdictReport
from memplan.units import format_bytes
from memplan.verdict import judge, run_of_estimate

BUDGET = "budget"
# Nothing trains within less than a CUDA context; a smaller number is a unit mistaken.
_SMALLEST_BUDGET_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Limit:
    """The memory that a run may take, at the level `device`.

    Attributes:
        gpu: the GPU whose kernels run; None where only a budget is given.
        judged: the row that verdicts are judged on: that GPU, with the budget as its usable memory where one is given.
    """

    gpu: Gpu | None
    judged: Gpu

    @property
    def usable_bytes(self) -> int:
        """What the run may take."""
        return self.judged.usable_bytes

    @property
    def context_bytes(self) -> int:
        """The CUDA context that is expected."""
        return cuda_context(self.judged).expected_bytes

    def verdict(self, estimate: Estimate) -> VerdictReport:
        """The verdict on an estimate that was made for `gpu`."""
        if self.judged is self.gpu:
            return estimate.verdict(self.judged.id)
        return judge(self.judged, estimate.peak.reserved_bytes, bool(estimate.unsupported), run_of_estimate(estimate))

    def best_case(self, live_bytes: int) -> Fits:
        """The best verdict that a run can have whose live peak is `live_bytes`.

        As if the allocator added nothing and the margin were none: how wide a margin is depends on what is measured, and it
        need not grow with the size.
        """
        context = cuda_context(self.judged)
        if live_bytes + context.expected_bytes > self.usable_bytes:
            return Fits.DOES_NOT_FIT
        return Fits.FITS if live_bytes + context.high_bytes <= self.usable_bytes else Fits.UNCERTAIN


def limit_of(gpu: str | None, budget_bytes: int | None) -> Limit:
    """The limit that a GPU's name and a budget mean.

    Raises:
        InputError: neither is given.
        InvalidValueError: a budget that is no positive number of bytes, or more than the GPU has.
        UnknownNameError: no such GPU.
    """
    row = get_gpu(gpu) if gpu is not None else None
    if budget_bytes is None:
        if row is None:
            raise InputError("a plan needs a limit", hint='name a GPU (gpu="rtx-4090") or a budget (budget_bytes=...)')
        return Limit(row, row)
    if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes < _SMALLEST_BUDGET_BYTES:
        raise InvalidValueError("budget_bytes", budget_bytes, f"bytes, {format_bytes(_SMALLEST_BUDGET_BYTES)} or more")
    if row is None:
        return Limit(None, _unnamed(budget_bytes))
    if budget_bytes > row.usable_bytes:
        allowed = f"at most what {row.name} has to offer, {row.usable_bytes} bytes"
        raise InvalidValueError("budget_bytes", budget_bytes, allowed)
    return Limit(row, replace(row, usable_bytes=budget_bytes))


def _unnamed(budget_bytes: int) -> Gpu:
    """A row without a name: it has the CUDA context of the table's row `unknown`."""
    return Gpu(
        id=BUDGET,
        name="the budget",
        vendor="NVIDIA",
        architecture="",
        compute_capability=None,
        instruction_set="",
        advertised_bytes=budget_bytes,
        total_bytes=None,
        usable_bytes=budget_bytes,
        confidence="high",
        aliases=(),
        sources=(),
        note="",
        date="",
    )
