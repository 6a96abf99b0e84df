"""The answer to one recipe as HTML. Runs in a computing process (`memplan.web.work`): what comes back is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.catalog.gpus import Gpu, get_gpu
from memplan.engine import estimate as analytic
from memplan.estimate import Component, Estimate, Fits, Line
from memplan.filler import USER
from memplan.report.estimate import headline, run_words
from memplan.report.tree import Headline
from memplan.report.wording import component_name, gib, moment
from memplan.units import GIB, format_bytes
from memplan.web.charts import Bar, Timeline, bar_of, timeline_of
from memplan.web.pages.copying import Copy, copies
from memplan.web.pages.known import Known, family_and_method, known
from memplan.web.pages.rendering import render
from memplan.web.recipes import recipe_of

# Lines of the receipt that open in place; the page of the whole receipt has all.
_LINES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the breakdown.

    Attributes:
        name: component, or a level that sums up the rows above it.
        lines: the largest lines of its receipt.
        more: how many lines are not among them.
        more_bytes: their sum.
        note: what it is, where the name does not say.
    """

    name: str
    label: str
    size_bytes: int
    share_of: int
    is_level: bool = False
    lines: tuple[Line, ...] = ()
    more: int = 0
    more_bytes: int = 0
    note: str = ""

    @property
    def all_lines(self) -> int:
        """How many lines the receipt has."""
        return len(self.lines) + self.more


@dataclass(frozen=True)
class Answer:
    """Everything that the page says about one recipe."""

    estimate: Estimate
    keys: Mapping[str, Any]
    headline: Headline
    reasons: tuple[str, ...]
    gpu: Gpu | None
    bar: Bar
    timeline: Timeline | None
    parts: tuple[Part, ...]
    family: str
    method: str
    known: tuple[Known, ...]
    copies: tuple[Copy, ...]

    @property
    def tone(self) -> str:
        """`fits`, `uncertain`, `does_not_fit`, or `none` where no GPU is named."""
        report = self.estimate.verdict_report
        return report.fits.value if report is not None else "none"

    @property
    def short(self) -> str:
        """Need and card in as few words as a small screen has room for."""
        report, need = self.estimate.verdict_report, self.estimate.peak.device_bytes
        return gib(need) if report is None else f"{need / GIB:,.1f} of {report.usable_bytes / GIB:,.1f} GiB"

    @property
    def at(self) -> str:
        """The moment of the peak, in words."""
        return moment(self.estimate.peak)

    @property
    def defaults(self) -> int:
        """How many values of the complete recipe the user did not say."""
        return sum(source != USER for source in self.estimate.recipe_sources.values())

    @property
    def run(self) -> str:
        """What was judged, in a few words, defaults included."""
        return run_words(self.estimate.recipe)


def answer_of(estimate: Estimate, keys: Mapping[str, Any], *, lines: int = _LINES_SHOWN) -> Answer:
    """What the page says about an estimate."""
    report = estimate.verdict_report
    family, method = family_and_method(estimate.recipe)
    return Answer(
        estimate=estimate,
        keys=keys,
        headline=headline(estimate),
        reasons=reasons(estimate),
        gpu=get_gpu(report.gpu) if report is not None else None,
        bar=bar_of(estimate),
        timeline=timeline_of(estimate),
        parts=tuple(breakdown(estimate, lines)),
        family=family,
        method=method,
        known=known(family, method),
        copies=copies(keys),
    )


def reasons(estimate: Estimate) -> tuple[str, ...]:
    """Why a verdict is uncertain, or an answer is only a lower bound; empty where it is neither."""
    found = [f"not covered: {text}" for text in estimate.unsupported]
    report = estimate.verdict_report
    if report is not None and report.fits is Fits.UNCERTAIN and report.upper_bytes > report.usable_bytes:
        over = format_bytes(report.upper_bytes - report.usable_bytes)
        found.append(
            f"{gib(report.expected_bytes)} are expected and would fit, but the upper bound is {over} beyond the card "
            f"(the margin is {report.margin})"
        )
    return tuple(found)


def breakdown(estimate: Estimate, lines: int) -> list[Part]:
    """Components at the peak and the levels above them, as in every report of memplan."""
    peak = estimate.peak
    whole = peak.device_bytes
    found = [
        _part(entry.component, entry.bytes, [x for x in estimate.lines if x.component is entry.component], lines, whole)
        for entry in estimate.components
    ]

    def add(name: str, label: str, size: int, note: str = "", *, is_level: bool = False) -> None:
        found.append(Part(name, label, size, whole, is_level, note=note))

    add("live", "live", peak.live_bytes, "storages alive, each rounded up to 512 bytes", is_level=True)
    if peak.allocated_bytes > peak.live_bytes:
        add("unsplit", "unsplit blocks", peak.allocated_bytes - peak.live_bytes, "remainders too small to split off")
    add("allocated", "allocated", peak.allocated_bytes, "torch.cuda.max_memory_allocated", is_level=True)
    if peak.reserved_bytes > peak.allocated_bytes:
        cache = peak.reserved_bytes - peak.allocated_bytes
        add("allocator_cache", "allocator cache", cache, "kept by PyTorch's allocator for later")
    add("reserved", "reserved", peak.reserved_bytes, "torch.cuda.max_memory_reserved", is_level=True)
    add("cuda_context", "CUDA context", whole - peak.reserved_bytes, "kernels and driver, outside of PyTorch")
    add("device", "device", whole, "what the card must have; the verdict is on this", is_level=True)
    return found


def _part(component: Component, size: int, lines: Sequence[Line], shown: int, whole: int) -> Part:
    rest = lines[shown:] if shown else []
    return Part(
        component.value,
        component_name(component),
        size,
        whole,
        lines=tuple(lines[: len(lines) - len(rest)]),
        more=len(rest),
        more_bytes=sum(line.bytes for line in rest),
    )


def answer_html(keys: Mapping[str, Any], root: str) -> tuple[str, str]:
    """The answer, without the page around it, and the verdict's word.

    Args:
        keys: recipe keys.
        root: where a proxy mounts the service.

    Raises:
        MemplanError: as `memplan.estimate`, and for a model given as a path.
    """
    estimate = analytic(recipe_of(keys))
    verdict = estimate.verdict_report
    html = render("answer.html", answer=answer_of(estimate, keys), root=root)
    return str(html), verdict.fits.value if verdict is not None else ""


def receipt_html(keys: Mapping[str, Any], root: str) -> str:
    """Every line of the receipt.

    Raises:
        MemplanError: as `answer_html`.
    """
    estimate = analytic(recipe_of(keys))
    return str(render("receipt.html", answer=answer_of(estimate, keys, lines=0), root=root))
