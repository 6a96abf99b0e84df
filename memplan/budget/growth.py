"""A check against what it was at a base: the same name in the budget file of that commit, with the files of that commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memplan.budget.config import CheckSpec
from memplan.budget.difference import Allowance, difference
from memplan.budget.files import Files
from memplan.budget.judging import peak_bytes
from memplan.budget.recipes import Accept, Run, run_of
from memplan.budget.result import BaseRef, Growth, Status
from memplan.engine import estimate
from memplan.errors import MemplanError
from memplan.estimate import Estimate

NOT_ASKED = "no base is given (--base)"


@dataclass(frozen=True)
class Past:
    """The checks of a base.

    Attributes:
        ref: what it is called; None where there is no base.
        specs: its checks by name.
        files: its files.
        note: why there is nothing to compare with.
        broken: whether the base has a budget file that cannot be read.
    """

    ref: BaseRef | None = None
    specs: Mapping[str, CheckSpec] = field(default_factory=dict)
    files: Files | None = None
    note: str = NOT_ASKED
    broken: bool = False


def growth_of(
    spec: CheckSpec,
    run: Run,
    answer: Estimate,
    past: Past,
    accept: Accept | None = None,
    allowance: Allowance | None = None,
) -> Growth:
    """How a check grew since the base, and why; as far as the allowance goes, key by key.

    Growth is that of the expected bytes at the check's level. Where either side is a lower bound, or the base cannot be
    estimated, a `max_increase` is `uncertain`: nothing is known about the growth.
    """
    level = spec.level
    limited = spec.max_increase is not None
    place = spec.places.get("max_increase", "")
    said = f'max_increase = "{spec.max_increase.text}"' if spec.max_increase is not None else ""
    after = peak_bytes(answer, level)
    unknown = Status.UNCERTAIN if limited else None
    empty = Growth(base="none", level=level, after_bytes=after, place=place, said=said)
    if past.files is None:
        return empty.model_copy(update={"note": past.note})
    if past.broken:
        return empty.model_copy(update={"base": "failed", "note": past.note, "status": unknown})
    old = past.specs.get(spec.name)
    if old is None:
        return empty.model_copy(update={"base": "new", "note": past.note})
    try:
        before = run_of(old, past.files, accept)
        same = before.recipe == run.recipe and before.recipe.uncovered == run.recipe.uncovered
        # Uses the answer again where nothing changed, as for most checks of most changes.
        first = answer if same else estimate(before.recipe)
    except MemplanError as error:
        return empty.model_copy(update={"base": "failed", "note": error.message, "status": unknown})
    before_bytes = peak_bytes(first, level)
    labels = (past.ref.ref if past.ref is not None else "base", "now")
    why = difference(before, run, labels=labels, answers=(first, answer), allowance=allowance)
    allowed = spec.max_increase.of(before_bytes) if spec.max_increase is not None else None
    status = None
    covered = bool(first.timeline) and bool(answer.timeline)
    if allowed is not None:
        if after - before_bytes > allowed and covered:
            status = Status.GREW
        elif same or (covered and not first.unsupported and not answer.unsupported):
            status = Status.WITHIN
        else:
            status = Status.UNCERTAIN
    return Growth(
        base="compared",
        level=level,
        before_bytes=before_bytes,
        after_bytes=after,
        limit_bytes=allowed,
        status=status,
        is_known=same or covered,
        why=why,
        place=place,
        said=said,
    )
