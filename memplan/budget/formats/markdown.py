"""A comment for a pull request, and a comparison in Markdown: verdict first, one table, the rest folded.

The first line is a hidden marker by which the comment is found again. A comment is at most 65,536 characters; what is left out
is said, and the verdict and the failing checks stay.
"""

from __future__ import annotations

from memplan.budget.formats.escape import code, html, plain, slug
from memplan.budget.formats.text import figures, part_name, verdict_word
from memplan.budget.result import CheckReport, CheckResult, Difference, Status
from memplan.budget.wording import (
    attribution_text,
    change_of,
    change_text,
    headline_of,
    interaction_text,
)
from memplan.report.wording import difference, gib, settings_text
from memplan.units import format_bytes

MAX_CHARACTERS = 65_536
_RESERVE = 200
_SIGNS = {
    Status.WITHIN: "✅", Status.UNCERTAIN: "❔", Status.GREW: "❌", Status.OVER: "❌", Status.ERROR: "⚠️",
}  # fmt: skip


def marker_of(report: CheckReport) -> str:
    """The hidden first line; it depends on the budget file alone."""
    return f"<!-- memplan:check:{slug(report.config)} -->"


def check_markdown(report: CheckReport) -> str:
    """The report as Markdown, in GitHub's flavour."""
    word, text = headline_of(report)
    head = f"{marker_of(report)}\n### memplan: {word} {plain(text)}\n\n"
    rows = _rows(report)
    columns = f"| | check | peak | at most | limit |{_base_title(report)} verdict |\n|---|---|--:|--:|--:|"
    columns += ("--:|" if _base_title(report) else "") + "---|\n"
    notes = "".join(f"\n{plain(note)}\n" for note in report.notes)
    # What fails comes first where not everything has room.
    order = sorted(range(len(report.checks)), key=lambda index: -report.checks[index].status.rank)
    room = MAX_CHARACTERS - _RESERVE - len(head) - len(columns) - len(notes)
    kept: set[int] = set()
    for index in order:
        if _size(rows[index]) <= room:
            room -= _size(rows[index])
            kept.add(index)
    table = "".join(rows[index] for index in sorted(kept))
    left_out = len(rows) - len(kept)
    more = f"\n{left_out} more checks are left out of this comment.\n" if left_out else ""
    details, dropped = [], 0
    for index in order:
        block = _details(report.checks[index])
        if _size(block) <= room:
            room -= _size(block)
            details.append(block)
        else:
            dropped += 1
    if dropped:
        more += f"\nDetails of {dropped} checks are left out of this comment: `memplan check` shows them.\n"
    return head + columns + table + notes + "".join(details) + more


def _size(text: str) -> int:
    """Of UTF-16 units, bytes and characters the largest count, whatever the limit is counted in."""
    return len(text.encode("utf-8"))


def _base_title(report: CheckReport) -> str:
    if report.base is not None:
        return f" Δ vs {plain(report.base.ref, 60)} |"
    return " Δ vs base |" if any(one.growth.base == "compared" for one in report.checks) else ""


def _rows(report: CheckReport) -> list[str]:
    compared = bool(_base_title(report))
    found = []
    for result in report.checks:
        cells = [_SIGNS[result.status], code(result.name), *figures(result)]
        cells += [change_of(result)] if compared else []
        found.append("| " + " | ".join([*cells, verdict_word(result)]) + " |\n")
    return found


def _details(result: CheckResult) -> str:
    """The folded part of a check; empty where there is nothing to say."""
    lines = []
    if result.problem is not None:
        lines.append(f"- {plain(result.problem.message)}")
        lines += [f"- {plain(line)}" for line in result.problem.hint.splitlines()]
    else:
        lines += [f"- {plain(reason)}" for reason in result.reasons]
        if result.status is not Status.WITHIN:
            lines.append(f"- run: {code(result.summary)}")
        lines += [f"- not covered: {plain(text)}" for text in result.unsupported]
    if result.suggestion is not None:
        change = result.suggestion
        sizes = f"{gib(change.expected_bytes)} expected, at most {gib(change.upper_bytes)}"
        lines.append(f"- least painful change that fits: {code(settings_text(change.sets))}, then {sizes}")
    if result.message and result.status is not Status.WITHIN:
        lines.append(f"- {plain(result.message)}")
    title = f"{html(result.name)}: {verdict_word(result)}"
    why = result.growth.why
    if why is not None and why.change_bytes:
        title = f"Why {html(result.name)} {'grew' if why.change_bytes > 0 else 'shrank'}"
        lines += growth_lines(why)
    if result.growth.base == "failed":
        lines.append(f"- the base could not be estimated: {plain(result.growth.note)}")
    return f"\n<details><summary>{title}</summary>\n\n" + "\n".join(lines) + "\n\n</details>\n" if lines else ""


def growth_lines(why: Difference) -> list[str]:
    """What each key did, then the components that changed."""
    lines = [f"- {code(change_text(one))}" for one in why.changed] if not why.attributions else []
    for one in why.attributions:
        keys = ", ".join(code(change_text(change)) for change in one.changes)
        lines.append(f"- {keys}: {attribution_text(one).rsplit(': ', 1)[1]}")
    rest = interaction_text(why.interaction_bytes, len(why.attributions), covered=why.after.is_covered)
    lines += [f"- {plain(rest)}"] if rest else []
    lines += [f"- {plain(note)}" for note in why.notes]
    parts = [part for part in why.components if part.change_bytes]
    if parts:
        lines += ["", "| component | before | now | change |", "|---|--:|--:|--:|"]
        lines += [
            f"| {part_name(part.component)} | {format_bytes(part.before_bytes)} | {format_bytes(part.after_bytes)} "
            f"| {difference(part.change_bytes)} |"
            for part in parts
        ]
        before, after = why.before.peak.device_bytes, why.after.peak.device_bytes
        whole = difference(after - before)
        lines.append(f"| **device** | **{format_bytes(before)}** | **{format_bytes(after)}** | **{whole}** |")
    return lines


def difference_markdown(found: Difference) -> str:
    """A comparison as Markdown."""
    first, second = gib(found.before.peak.device_bytes), gib(found.after.peak.device_bytes)
    whole = difference(found.change_bytes) if found.before.is_covered and found.after.is_covered else "not known,"
    head = f"### memplan: {whole} on the device\n\n"
    head += f"{code(found.before.label)} {first} → {code(found.after.label)} {second}\n\n"
    lines = growth_lines(found)
    if found.implied:
        lines += ["", *(f"- by default: {code(change_text(change))}" for change in found.implied)]
    return head + "\n".join(lines or ["No recipe key differs."]) + "\n"
