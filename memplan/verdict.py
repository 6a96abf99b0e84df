"""Whether a run fits a GPU: expected and upper bound at device level against what torch can use of the card.

`fits` needs the upper bound within the usable memory; `does_not_fit` needs the expected bytes beyond it; everything else,
and every estimate with something unsupported that does not already exceed the card, is `uncertain`.
"""

from __future__ import annotations

from memplan.catalog.calibration import Run, margin, run_of
from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import Gpu, get_gpu
from memplan.errors import InputError, MemplanError
from memplan.estimate import Estimate, Fits, VerdictReport


def judge(gpu: Gpu, reserved_bytes: int, unsupported: bool, run: Run | None = None) -> VerdictReport:
    """The verdict on `gpu` for a run that reserves `reserved_bytes` in torch's allocator.

    Args:
        gpu: the card.
        reserved_bytes: predicted.
        unsupported: whether something in the recipe is not covered.
        run: what decides which measured runs are near; None leaves the stated margin.
    """
    context = cuda_context(gpu)
    expected = reserved_bytes + context.expected_bytes
    added = margin(gpu, run, reserved_bytes, expected)
    upper = reserved_bytes + context.high_bytes + added.bytes
    return VerdictReport(
        gpu=gpu.id,
        usable_bytes=gpu.usable_bytes,
        expected_bytes=expected,
        upper_bytes=upper,
        headroom_bytes=gpu.usable_bytes - expected,
        fits=word_for(expected, upper, gpu.usable_bytes, unsupported=unsupported),
        margin=added.text,
    )


def upper_reserved_bytes(verdict: VerdictReport) -> int:
    """What torch's allocator may reserve at the verdict's upper bound, which holds the largest known CUDA context besides."""
    return verdict.upper_bytes - cuda_context(get_gpu(verdict.gpu)).high_bytes


def word_for(expected_bytes: int, upper_bytes: int, usable_bytes: int, *, unsupported: bool) -> Fits:
    """The word for expected bytes and their upper bound against what may be used."""
    if expected_bytes > usable_bytes:
        return Fits.DOES_NOT_FIT
    return Fits.FITS if upper_bytes <= usable_bytes and not unsupported else Fits.UNCERTAIN


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
    return judge(gpu, estimate.peak.reserved_bytes, bool(estimate.unsupported), run_of_estimate(estimate))


def run_of_estimate(estimate: Estimate) -> Run | None:
    """What decides which measured runs are near an answer; None where its model can no longer be read."""
    from memplan.cards import resolve_model

    try:
        family = str(resolve_model(estimate.recipe["model"]).config["model_type"])
    except (MemplanError, KeyError):
        return None
    return run_of(estimate.recipe, family)
