"""The report of an estimate: verdict first, then where the bytes are, when, and on what grounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.catalog.gpus import get_gpu
from memplan.estimate import Component, Estimate, Fits, Provenance, VerdictReport
from memplan.filler import USER
from memplan.report.tree import Bar, Block, Bullets, Column, Facts, Headline, Paragraph, Report, Segment, Table, Tone
from memplan.report.wording import component_name, gib, gib_apart, model_name, moment, phase_name, share, value_text
from memplan.units import format_bytes

_TONES: dict[Fits, Tone] = {Fits.FITS: "good", Fits.DOES_NOT_FIT: "bad", Fits.UNCERTAIN: "unsure"}
_PROVENANCE = {
    Provenance.ANALYTIC: "analytic: the step walked op by op",
    Provenance.TRACE: "trace: the real model on fake tensors",
}


def _source(estimate: Estimate) -> str:
    if estimate.provenance is Provenance.MEASURED:
        device = estimate.versions.get("gpu")
        return f"measured on {device}" if device else "real steps on the CPU, for testing: not a measurement of a GPU"
    return _PROVENANCE[estimate.provenance]


def estimate_report(estimate: Estimate, *, defaults: bool = False) -> Report:
    """Everything an estimate says, for a reader.

    Args:
        estimate: the answer.
        defaults: whether to list every value of the recipe with its source.
    """
    blocks: list[Block] = [headline(estimate)]
    if estimate.verdict_report is not None:
        blocks.append(_bar(estimate, estimate.verdict_report))
    if estimate.unsupported:
        blocks.append(Bullets("Not covered, so this is no promise", estimate.unsupported, "unsure"))
    blocks += [_facts(estimate), breakdown(estimate)]
    if estimate.timeline:
        blocks.append(_timeline(estimate))
    assumptions = list(estimate.assumptions)
    if estimate.verdict_report is not None:
        assumptions.insert(0, f"the margin up to the upper bound is {estimate.verdict_report.margin}")
    if assumptions:
        blocks.append(Bullets("Assumptions", tuple(assumptions)))
    blocks.append(_defaults(estimate) if defaults else _defaults_hint(estimate))
    return Report(tuple(blocks))


def headline(estimate: Estimate) -> Headline:
    """The verdict in one sentence, with its numbers."""
    verdict = estimate.verdict_report
    floor = "at least " if estimate.unsupported else ""
    if verdict is None:
        return Headline("Needs", f"{floor}{gib(estimate.peak.device_bytes)} on the device at its peak; no GPU is named")
    where = f"on {get_gpu(verdict.gpu).name}:"
    sizes = (verdict.expected_bytes, verdict.upper_bytes, verdict.usable_bytes)
    expected, upper, usable = gib_apart(*sizes)
    tone = _TONES[verdict.fits]
    if verdict.fits is Fits.DOES_NOT_FIT:
        over = format_bytes(-verdict.headroom_bytes, decimals=1)
        return Headline("Does not fit", f"{where} {floor}{expected} expected, {usable} usable, {over} too much", tone)
    if verdict.fits is Fits.UNCERTAIN and estimate.unsupported:
        return Headline("Uncertain", f"{where} at least {expected} of {usable} usable; not everything is covered", tone)
    word = "Fits" if verdict.fits is Fits.FITS else "Uncertain"
    return Headline(word, f"{where} {expected} expected, at most {upper} of {usable} usable", tone)


def _bar(estimate: Estimate, verdict: VerdictReport) -> Bar:
    segments = [Segment(component_name(entry.component), entry.bytes) for entry in estimate.components]
    peak = estimate.peak
    segments.append(Segment(component_name(Component.ALLOCATOR_CACHE), peak.reserved_bytes - peak.live_bytes))
    segments.append(Segment(component_name(Component.CUDA_CONTEXT), peak.device_bytes - peak.reserved_bytes))
    return Bar(tuple(segments), verdict.usable_bytes, verdict.upper_bytes)


def run_words(recipe: Mapping[str, Any]) -> str:
    """A complete recipe in a few words: `gpt2, lora, 4 × 2048 tokens, adamw_torch, no checkpointing`."""
    batch = f"{recipe.get('micro_batch_size')} × {recipe.get('sequence_length')} tokens"
    checkpointing = "activation checkpointing" if recipe.get("activation_checkpointing") else "no checkpointing"
    offloaded = recipe.get("activation_offloading")
    offloading = f"{str(offloaded).replace('-', ' ')} offloaded" if offloaded else ""
    run = (model_name(recipe), recipe.get("method"), batch, recipe.get("optim"), checkpointing, offloading)
    return ", ".join(str(part) for part in run if part)


def _facts(estimate: Estimate) -> Facts:
    parameters, per = estimate.parameters, estimate.bytes_per_parameter
    rows = [
        ("run", run_words(estimate.recipe)),
        ("peak", moment(estimate.peak)),
        (
            "parameters",
            f"{parameters.total:,}, of which {parameters.trainable:,} trained ({parameters.trainable_percent:.4f} %)",
        ),
        (
            "per trained parameter",
            f"{per.total:.4g} bytes: weights {per.weights:.4g}, gradients {per.gradients:.4g}, "
            f"optimizer {per.optimizer:.4g}",
        ),
    ]
    if estimate.host_bytes:
        rows.append(("host memory", f"{format_bytes(estimate.host_bytes)} of paged or offloaded state"))
    covered = bool(estimate.timeline)
    rows.append(("source", _source(estimate) if covered else "analytic: model states alone"))
    return Facts(tuple(rows))


def breakdown(estimate: Estimate) -> Table:
    """Components at the peak and the levels above them; shares are of the device's bytes."""
    peak = estimate.peak
    rows: list[tuple[str, str, str]] = []
    strong = set()

    def add(name: str, size: int, *, is_level: bool = False) -> None:
        if is_level:
            strong.add(len(rows))
        rows.append((name, format_bytes(size), share(size, peak.device_bytes)))

    for entry in estimate.components:
        add(component_name(entry.component), entry.bytes)
    add("live", peak.live_bytes, is_level=True)
    if peak.allocated_bytes > peak.live_bytes:
        add("unsplit blocks", peak.allocated_bytes - peak.live_bytes)
    add("allocated", peak.allocated_bytes, is_level=True)
    if peak.reserved_bytes > peak.allocated_bytes:
        add("allocator cache", peak.reserved_bytes - peak.allocated_bytes)
    add("reserved", peak.reserved_bytes, is_level=True)
    add("CUDA context", peak.device_bytes - peak.reserved_bytes)
    add("device", peak.device_bytes, is_level=True)
    columns = (Column("component"), Column("bytes", "right"), Column("share", "right"))
    return Table(columns, tuple(rows), "At the peak", frozenset(strong))


def _timeline(estimate: Estimate) -> Table:
    highest = max(point.peak_bytes for point in estimate.timeline)
    rows = tuple(
        (
            str(point.step) if point.step else "",
            phase_name(point.phase),
            format_bytes(point.peak_bytes),
            format_bytes(point.end_bytes),
            "peak" if point.peak_bytes == highest else "",
        )
        for point in estimate.timeline
    )
    columns = (Column("step"), Column("phase"), Column("highest", "right"), Column("at its end", "right"), Column(""))
    return Table(columns, rows, "Phases, live bytes")


def _defaults(estimate: Estimate) -> Table:
    rows = tuple(
        (
            key,
            value_text(value),
            "you" if estimate.recipe_sources.get(key) == USER else estimate.recipe_sources.get(key, ""),
        )
        for key, value in estimate.recipe.items()
    )
    columns = (Column("key"), Column("value", fit="wrap"), Column("from", fit="wrap"))
    return Table(columns, rows, "Recipe")


def _defaults_hint(estimate: Estimate) -> Paragraph:
    count = sum(source != USER for source in estimate.recipe_sources.values())
    return Paragraph(f"{count} values of the recipe are defaults; --defaults lists them with their sources.")
