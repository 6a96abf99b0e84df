"""The report of a plan: verdict first, then the least painful change, then everything that was considered."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.catalog.gpus import get_gpu
from memplan.estimate import Fits, VerdictReport
from memplan.planner.result import Boundary, GpuOption, LengthReport, Plan, Proposal, Tier
from memplan.report.tree import Block, Bullets, Column, Facts, Headline, Paragraph, Report, Table
from memplan.report.wording import counted, gib, gib_apart, moment, settings_text, value_text
from memplan.units import format_bytes

TIER_NAMES = {
    Tier.SAME_RESULT: "same result",
    Tier.SLOWER: "slower",
    Tier.DIFFERENT_TRAINING: "other training",
    Tier.HARDWARE: "other GPU",
}
_WORDS = {Fits.FITS: "fits", Fits.UNCERTAIN: "uncertain", Fits.DOES_NOT_FIT: "does not fit"}


def plan_report(plan: Plan) -> Report:
    """Everything that a plan says, for a reader."""
    blocks: list[Block] = [_verdict(plan)]
    if plan.current.fits is not Fits.FITS:
        blocks += _solution(plan)
    if plan.current.unsupported:
        blocks.append(Bullets("Not covered in the recipe as given", plan.current.unsupported, "unsure"))
    if plan.singles:
        blocks.append(_table("Single changes, by what they cost", plan.singles, plan.cheapest))
    if plan.uncertain:
        blocks.append(_table("Uncertain: might fit, but this is no promise", plan.uncertain, None))
    if len(plan.pareto) > 1:
        blocks.append(_table("Memory against compute: nothing milder needs less of both", plan.pareto, None))
    if plan.gpus:
        blocks.append(_gpus(plan.gpus))
    if plan.largest:
        blocks.append(boundaries(plan.largest))
    if plan.lengths is not None:
        blocks.append(_lengths(plan.lengths))
    blocks.append(_space(plan))
    return Report(tuple(blocks))


def _verdict(plan: Plan) -> Headline:
    verdict, fits = plan.current.verdict, plan.current.fits
    where = f"on {get_gpu(plan.gpu).name}:" if plan.gpu else "the budget:"
    expected, upper, usable = gib_apart(verdict.expected_bytes, verdict.upper_bytes, verdict.usable_bytes)
    if fits is Fits.DOES_NOT_FIT:
        over = format_bytes(-verdict.headroom_bytes, decimals=1)
        return Headline("Does not fit", f"{where} {expected} expected, {usable} usable, {over} too much", "bad")
    text = f"{where} {expected} expected, at most {upper} of {usable} usable"
    if fits is Fits.FITS:
        return Headline("Fits", f"{text}; nothing has to change", "good")
    return Headline("Uncertain", text, "unsure")


def _solution(plan: Plan) -> list[Block]:
    smallest, cheapest = plan.smallest, plan.cheapest
    if cheapest is None:
        most = counted(plan.space.max_changes, "change")
        return [Paragraph(f"Nothing that was searched fits: no single change, and no combination of up to {most}.")]
    blocks: list[Block] = [_proposal("Least painful", cheapest)]
    if smallest is not None and smallest != cheapest:
        blocks.append(_proposal("With fewer changes, at a higher price", smallest))
    return blocks


def _proposal(title: str, proposal: Proposal) -> Facts:
    expected, upper, usable = gib_apart(
        proposal.verdict.expected_bytes, proposal.verdict.upper_bytes, proposal.verdict.usable_bytes
    )
    rows = [
        ("do", proposal.title),
        ("set", settings_text(proposal.sets)),
        ("then", f"{expected} expected, at most {upper} of {usable} usable: {_WORDS[proposal.fits]}"),
        ("costs", ", ".join(filter(None, (TIER_NAMES[proposal.tier], _compute(proposal, "of the compute a token"))))),
    ]
    if proposal.implies:
        moved = ", ".join(f"{key} = {value_text(after)}" for key, (_, after) in proposal.implies.items())
        rows.append(("also changes", moved))
    notes = dict.fromkeys(change.note for change in proposal.changes if change.note)
    if notes:
        rows.append(("note", "; ".join(notes)))
    if proposal.host_bytes:
        rows.append(("host memory", f"{format_bytes(proposal.host_bytes)} of paged or offloaded state"))
    return Facts(tuple(rows), title)


def _table(title: str, proposals: Sequence[Proposal], chosen: Proposal | None) -> Table:
    rows = tuple(
        (
            TIER_NAMES[one.tier] if one.changes else "",
            one.title,
            _saving(one),
            gib(one.peak.device_bytes) if one.saves_bytes is not None else "",
            _compute(one),
            "not covered" if one.unsupported and one.fits is Fits.UNCERTAIN else _WORDS[one.fits],
        )
        for one in proposals
    )
    strong = frozenset(index for index, one in enumerate(proposals) if chosen is not None and one == chosen)
    columns = (
        Column("costs"),
        Column("change", fit="wrap"),
        Column("saves", "right"),
        Column("device", "right"),
        Column("compute", "right"),
        Column("verdict"),
    )
    return Table(columns, rows, title, strong)


def _saving(proposal: Proposal) -> str:
    if proposal.saves_bytes is None:
        return ""
    return format_bytes(proposal.saves_bytes) if proposal.changes else ""


def _compute(proposal: Proposal, suffix: str = "") -> str:
    if proposal.compute is None:
        return ""
    return f"{100 * proposal.compute.ratio:.0f} % {suffix}".rstrip()


def _gpus(options: Sequence[GpuOption]) -> Table:
    priced = any(option.price is not None for option in options)
    rows = tuple(
        (
            option.name,
            gib(option.usable_bytes),
            gib(option.verdict.expected_bytes),
            *((f"{option.price:g}" if option.price is not None else "",) if priced else ()),
        )
        for option in options
    )
    columns = (Column("GPU"), Column("usable", "right"), Column("expected", "right"))
    priced_columns = (*columns, Column("price", "right")) if priced else columns
    return Table(priced_columns, rows, "The recipe as given fits on")


def boundaries(found: Sequence[Boundary]) -> Table:
    """What fits at most, and what comes next."""
    rows = tuple(
        (
            one.quantity,
            "none" if one.value is None else value_text(one.value),
            _expected(one.verdict),
            "" if one.next_value is None else value_text(one.next_value),
            "" if one.next_verdict is None else f"{_expected(one.next_verdict)}, {_WORDS[one.next_verdict.fits]}",
            one.note,
        )
        for one in found
    )
    columns = (
        Column("largest"),
        Column("fits"),
        Column("expected", "right"),
        Column("next"),
        Column("expected, verdict"),
        Column("", fit="wrap"),
    )
    return Table(columns, rows, "As far as it goes, everything else as given")


def _expected(verdict: VerdictReport | None) -> str:
    return gib(verdict.expected_bytes) if verdict is not None else ""


def _lengths(report: LengthReport) -> Facts:
    cut = f", {report.truncated:,} of them cut" if report.truncated else ""
    masked = ", padded" if report.padding else ""
    rows = [
        ("samples", f"{report.samples:,}{cut}"),
        ("longest batch", f"of {report.longest:,} tokens{masked}: {gib(report.verdict.expected_bytes)} expected, "
         f"{_WORDS[report.verdict.fits]}"),
        ("its peak", moment(report.peak)),
    ]  # fmt: skip
    if report.fitting_length is None:
        rows.append(("fitting length", "none"))
    else:
        rows.append(("fitting length", f"{report.fitting_length:,} tokens; {counted(report.over, 'sample')} beyond it"))
    return Facts(tuple(rows), "The longest sample")


def _space(plan: Plan) -> Paragraph:
    space = plan.space
    singles = sum(map(len, space.changes.values()))
    return Paragraph(
        f"Searched: {counted(singles, 'single change')} of {counted(len(space.changes), 'knob')} and their "
        f"{space.combinations:,} combinations of up to {space.max_changes}; {counted(space.judged, 'recipe')} estimated in "
        f"full. {_left_out(plan)}Compute counts operations, not seconds."
    )


def _left_out(plan: Plan) -> str:
    """What was not looked at, and where."""
    space = plan.space
    told = ""
    if space.not_in_front:
        told += (
            f"The table of memory against compute leaves out {counted(space.not_in_front, 'combination')} with another "
            "training: of those only single changes are in it. "
        )
    if space.skipped:
        told += "Not turned: " + "; ".join(f"{one.knob} ({one.reason})" for one in space.skipped) + ". "
    return told
