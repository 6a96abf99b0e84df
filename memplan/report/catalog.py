"""Reports of what memplan knows: models, GPUs, methods, optimizers."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.cards import ModelCard
from memplan.catalog.gpus import Gpu
from memplan.methods import Method
from memplan.optimizers.catalog import OptimizerRow
from memplan.report.tree import Bullets, Column, Facts, Headline, Paragraph, Report, Table
from memplan.report.wording import counted, gib, value_text
from memplan.units import GIB


def models_report(cards: Sequence[ModelCard]) -> Report:
    """One row a card; sizes are those of the weights alone."""
    rows = tuple(
        (
            card.id,
            f"{card.parameters:,}",
            f"{card.parameters * 4 / GIB:,.2f}",
            f"{card.parameters * 2 / GIB:,.2f}",
            card.confidence,
        )
        for card in cards
    )
    columns = (
        Column("model", fit="cut"),
        Column("parameters", "right"),
        Column("fp32 GiB", "right"),
        Column("bf16 GiB", "right"),
        Column("sure"),
    )
    return Report((Table(columns, rows), Paragraph(f"{counted(len(cards), 'card')}; `memplan models ID` shows one.")))


def model_report(card: ModelCard, stored: Sequence[tuple[str, int]]) -> Report:
    """One card in full.

    Args:
        card: the card.
        stored: bytes of the weights by how they are stored.
    """
    facts = [
        ("parameters", f"{card.parameters:,}"),
        ("class", card.model_class),
        ("confidence", card.confidence),
        ("published", f"{card.published_parameters} ({card.published_evidence})"),
        ("source", card.source),
    ]
    for name, value in (("note", card.note), ("stored as", card.stored_dtype_note)):
        if value:
            facts.append((name, value))
    if card.fields_count_cannot_prove:
        open_keys = [key for key in card.fields_count_cannot_prove if key not in card.of_those_cross_checked]
        facts.append(("a count cannot prove", ", ".join(open_keys) or "nothing that is not confirmed elsewhere"))
    sizes = Table(
        (Column("weights stored as"), Column("bytes", "right"), Column("", "right")),
        tuple((name, f"{size:,}", gib(size)) for name, size in stored),
        "Weights",
    )
    config = Facts(tuple((key, value_text(value)) for key, value in card.config.items()), "Config")
    return Report((Headline(card.id, ""), Facts(tuple(facts)), sizes, config))


def gpus_report(gpus: Sequence[Gpu]) -> Report:
    """One row a GPU."""
    rows = tuple(
        (gpu.id, f"{gpu.advertised_bytes // GIB} GB", gib(gpu.usable_bytes), gpu.confidence, gpu.sources[0])
        for gpu in gpus
    )
    columns = (
        Column("gpu"),
        Column("advertised", "right"),
        Column("usable", "right"),
        Column("sure"),
        Column("source", fit="cut"),
    )
    text = f"{counted(len(gpus), 'GPU')}. Usable is what torch can see; `memplan gpus ID` shows every reading."
    return Report((Table(columns, rows), Paragraph(text)))


def gpu_report(gpu: Gpu) -> Report:
    """One GPU in full."""
    facts = [
        ("id", gpu.id),
        ("also called", ", ".join(gpu.aliases)),
        ("vendor", f"{gpu.vendor}, {gpu.architecture}, {gpu.instruction_set}"),
        ("advertised", f"{gpu.advertised_bytes // GIB} GB on the box, {gpu.advertised_bytes:,} bytes"),
        ("usable", f"{gib(gpu.usable_bytes)}, {gpu.usable_bytes:,} bytes"),
        ("confidence", gpu.confidence),
        ("date", gpu.date),
        ("note", gpu.note),
    ]
    if gpu.total_bytes is not None:
        facts.insert(4, ("driver's total", f"{gib(gpu.total_bytes)}, {gpu.total_bytes:,} bytes"))
    known = tuple((name, value) for name, value in facts if value)
    return Report((Headline(gpu.name, ""), Facts(known), Bullets("Readings and sources", gpu.sources)))


def methods_report(methods: Sequence[Method]) -> Report:
    """One row a method."""
    rows = []
    for method in methods:
        also = f" (also {', '.join(method.aliases)})" if method.aliases else ""
        rows.append((method.name, method.description + also))
    columns = (Column("method"), Column("what it trains", fit="wrap"))
    return Report((Table(columns, tuple(rows)), Paragraph(f"{counted(len(methods), 'method')}.")))


def optimizers_report(rows: Sequence[tuple[OptimizerRow, str]]) -> Report:
    """One row an optimizer.

    Args:
        rows: the optimizer, and bytes of state a parameter in words.
    """
    columns = (Column("optim"), Column("state", "right"), Column("library, or why it is refused", fit="wrap"))
    text = "State is bytes a parameter of a large float32 matrix; what is marked host lies in CPU memory."
    cells = tuple((row.name, state, row.unsupported or row.library) for row, state in rows)
    return Report((Table(columns, cells), Paragraph(text)))
