"""Whether a run fits a GPU: expected and upper bound at device level against what torch can use of the card.

`fits` needs the upper bound within the usable memory; `does_not_fit` needs the expected bytes beyond it; everything else,
and every estimate with something unsupported that does not already exceed the card, is `uncertain`.
"""

from __future__ import annotations

from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import Gpu, get_gpu
from memplan.errors import InputError
from memplan.estimate import Estimate, Fits, VerdictReport
from memplan.units import GIB

# Until records of a family on a GPU exist, the margin is stated, not measured: the larger of a fifth of the estimate and 2 GiB.
UNCALIBRATED_FRACTION = (1, 5)
UNCALIBRATED_FLOOR_BYTES = 2 * GIB


def margin_bytes(expected_bytes: int) -> int:
    """The stated margin above `expected_bytes` where no measured records are near."""
    numerator, denominator = UNCALIBRATED_FRACTION
    return max(expected_bytes * numerator // denominator, UNCALIBRATED_FLOOR_BYTES)


def judge(gpu: Gpu, reserved_bytes: int, unsupported: bool) -> VerdictReport:
    """The verdict on `gpu` for a run that reserves `reserved_bytes` in torch's allocator."""
    context = cuda_context(gpu)
    expected = reserved_bytes + context.expected_bytes
    upper = reserved_bytes + context.high_bytes + margin_bytes(expected)
    if expected > gpu.usable_bytes:
        fits = Fits.DOES_NOT_FIT
    elif upper <= gpu.usable_bytes and not unsupported:
        fits = Fits.FITS
    else:
        fits = Fits.UNCERTAIN
    return VerdictReport(
        gpu=gpu.id,
        usable_bytes=gpu.usable_bytes,
        expected_bytes=expected,
        upper_bytes=upper,
        headroom_bytes=gpu.usable_bytes - expected,
        fits=fits,
        margin="stated, not calibrated: the larger of 20 % and 2 GiB, and the highest known CUDA context",
    )


def verdict_on(estimate: Estimate, name: str | None) -> VerdictReport:
    """The verdict on the GPU called `name`, or the one that the estimate was made for.

    Raises:
        UnknownNameError: no such GPU.
        InputError: no GPU was named.
    """
    if name is None:
        if estimate.verdict_report is None:
            raise InputError("no GPU was named", hint='name one: estimate.verdict("rtx-4090"), or gpu= in the recipe')
        return estimate.verdict_report
    gpu = get_gpu(name)
    if estimate.verdict_report is not None and estimate.verdict_report.gpu == gpu.id:
        return estimate.verdict_report
    return judge(gpu, estimate.peak.reserved_bytes, bool(estimate.unsupported))
