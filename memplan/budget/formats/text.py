"""Checks and comparisons as report trees, which the terminal and plain text draw."""

from __future__ import annotations

from memplan.budget.result import CheckReport, CheckResult, Difference, Outcome, Status
from memplan.budget.wording import (
    STATUS_WORDS,
    attribution_text,
    binding_limit,
    change_of,
    change_text,
    headline_of,
    interaction_text,
)
from memplan.estimate import Component
from memplan.report.tree import Block, Bullets, Column, Facts, Headline, Paragraph, Report, Table, Tone
from memplan.report.wording import component_name, difference, gib, settings_text
from memplan.units import format_bytes

_TONES: dict[str, Tone] = {"pass": "good", "warn": "unsure", "over": "bad", "uncertain": "unsure", "error": "bad"}


def check_report(report: CheckReport) -> Report:
    """Verdict, one table, then what is wrong with each check that is not within its limits, and why it grew."""
    word, text = headline_of(report)
    blocks: list[Block] = [Headline(word, text, _TONES[report.verdict]), _checks(report)]
    for result in report.checks:
        if result.status is not Status.WITHIN:
            blocks.append(_details(result))
        why = result.growth.why
        if why is not None and why.change_bytes:
            blocks += growth_blocks(why, f"Why {result.name} changed since {why.before.label}")
    if report.notes:
        blocks.append(Bullets("Notes", report.notes))
    return Report(tuple(blocks))


def _checks(report: CheckReport) -> Table:
    compared = report.base is not None or any(result.growth.base == "compared" for result in report.checks)
    columns = [
        Column("check", fit="cut"),
        Column("verdict"),
        Column("peak", "right"),
        Column("at most", "right"),
        Column("limit", "right"),
        Column("room", "right"),
    ]
    if compared:
        columns.append(Column(f"since {report.base.ref}" if report.base else "since the base", "right"))
    rows = []
    for result in report.checks:
        limit = binding_limit(result)
        cells = [
            result.name,
            verdict_word(result),
            *figures(result),
            format_bytes(limit.limit_bytes - limit.expected_bytes)
            if limit is not None and not result.unsupported
            else "",
        ]
        rows.append(tuple([*cells, change_of(result)] if compared else cells))
    return Table(tuple(columns), tuple(rows))


def figures(result: CheckResult) -> tuple[str, str, str]:
    """Peak, upper bound and limit of a check, each for a cell."""
    limit = binding_limit(result)
    at_least = "≥ " if result.unsupported else ""
    peak = limit.expected_bytes if limit is not None else result.expected_bytes
    return (
        f"{at_least}{gib(peak)}" if peak is not None else "",
        gib(limit.upper_bytes) if limit is not None and not result.unsupported else "",
        gib(limit.limit_bytes) if limit is not None else "",
    )


def verdict_word(result: CheckResult) -> str:
    """The status, with `(warning)` where it does not fail."""
    if not result.limits and result.growth.limit_bytes is None and result.status is Status.WITHIN:
        return "not judged"
    word = STATUS_WORDS[result.status]
    return f"{word} (warning)" if result.outcome is Outcome.WARN else word


def _details(result: CheckResult) -> Facts:
    rows = []
    if result.problem is not None:
        rows.append(("problem", result.problem.message))
        rows += [("", line) for line in result.problem.hint.splitlines()]
    else:
        rows += [("because", reason) for reason in result.reasons]
        rows.append(("run", result.summary))
    if result.files:
        rows.append(("read from", ", ".join(result.files)))
    if result.problem is None:
        rows += [("not covered", text) for text in result.unsupported]
    if result.suggestion is not None:
        change = result.suggestion
        then = f"{gib(change.expected_bytes)} expected, at most {gib(change.upper_bytes)}"
        rows.append(("least painful", f"{change.title}: set {settings_text(change.sets)}; then {then}"))
    if result.message:
        rows += [("message", line) for line in result.message.splitlines()]
    return Facts(tuple(rows), f"{result.name}: {verdict_word(result)}")


def difference_report(found: Difference) -> Report:
    """Why two runs differ, for a reader."""
    first, second = gib(found.before.peak.device_bytes), gib(found.after.peak.device_bytes)
    sides = f"from {first} ({found.before.label}) to {second} ({found.after.label})"
    if not (found.before.is_covered and found.after.is_covered):
        head = Headline("Not known:", f"the step is not covered; what is certain went {sides}", "unsure")
    elif found.change_bytes == 0:
        head = Headline("Same", f"peak: {first} on the device, in {found.before.label} and {found.after.label}")
    elif found.change_bytes > 0:
        head = Headline("Grew", f"by {format_bytes(found.change_bytes)} on the device, {sides}", "unsure")
    else:
        head = Headline("Shrank", f"by {format_bytes(-found.change_bytes)} on the device, {sides}", "good")
    blocks: list[Block] = [head]
    if found.notes:
        blocks.append(Bullets("Not exact", found.notes, "unsure"))
    blocks += growth_blocks(found, "By recipe key, in this order")
    if not found.changed:
        blocks.append(Paragraph("No recipe key differs."))
    elif not found.attributions:
        blocks.append(Bullets("Changed", tuple(change_text(change) for change in found.changed)))
    if found.implied:
        blocks.append(Bullets("Different by default", tuple(change_text(change) for change in found.implied)))
    return Report(tuple(blocks))


def growth_blocks(why: Difference, title: str) -> list[Block]:
    """Keys with what each did, and components that changed."""
    blocks: list[Block] = []
    if why.attributions:
        items = [attribution_text(one) for one in why.attributions]
        rest = interaction_text(why.interaction_bytes, len(why.attributions), covered=why.after.is_covered)
        blocks.append(Bullets(title, tuple([*items, rest] if rest else items)))
    rows = [
        (part_name(part.component), format_bytes(part.before_bytes), format_bytes(part.after_bytes),
         difference(part.change_bytes))
        for part in why.components if part.change_bytes
    ]  # fmt: skip
    if rows:
        before, after = why.before.peak.device_bytes, why.after.peak.device_bytes
        rows.append(("device", format_bytes(before), format_bytes(after), difference(after - before)))
        columns = (
            Column("component"), Column(why.before.label, "right"), Column(why.after.label, "right"),
            Column("change", "right"),
        )  # fmt: skip
        heading = "" if why.attributions else title
        blocks.append(Table(columns, tuple(rows), heading, frozenset({len(rows) - 1})))
    return blocks


def part_name(component: str) -> str:
    """A component, or what lies between live and allocated, for a reader."""
    return "unsplit blocks" if component == "unsplit_blocks" else component_name(Component(component))
