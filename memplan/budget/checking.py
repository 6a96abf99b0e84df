"""Checks, one after the other: recipe, estimate, limits, growth, outcome; a check that cannot be judged stops no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.budget.config import CheckSpec, Level, OnUncertain, Severity
from memplan.budget.difference import Allowance
from memplan.budget.files import Files
from memplan.budget.growth import Past, growth_of
from memplan.budget.judging import judge_limits, peak_bytes
from memplan.budget.recipes import Accept, run_of
from memplan.budget.result import CheckReport, CheckResult, Growth, Outcome, Problem, Status, Suggestion
from memplan.budget.wording import reasons_of, run_text
from memplan.engine import estimate
from memplan.errors import InputError, MemplanError, UnsupportedError
from memplan.estimate import Estimate
from memplan.recipe import Recipe

# Plans are searches: enough for a report to read, and never the bulk of the time.
MAX_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How checks are run.

    Attributes:
        on_uncertain: instead of what the budget file says; None leaves that.
        suggest: whether to search the least painful change that fits for what is over.
        accept: called with every recipe before it is computed; raises where it may not be.
        limits_needed: whether a check without any limit is an error.
        most_explained: estimates that may be made to say what each changed key does, in all checks together; None for any
            number.
    """

    on_uncertain: OnUncertain | None = None
    suggest: bool = True
    accept: Accept | None = None
    limits_needed: bool = True
    most_explained: int | None = None


def run_checks(specs: Sequence[CheckSpec], files: Files, past: Past, config: str, options: Options) -> CheckReport:
    """The report of all checks, in their order."""
    from memplan import __version__

    found: list[CheckResult] = []
    suggested = 0
    allowance = Allowance(options.most_explained)
    for spec in specs:
        result = _checked(
            spec, files, past, options, allowance, suggest=options.suggest and suggested < MAX_SUGGESTIONS
        )
        suggested += result.status is Status.OVER
        found.append(result)
    notes = []
    unjudged = [spec.name for spec in specs if spec.max_increase is not None]
    if unjudged and past.ref is None and past.files is None:
        notes.append(f"max_increase is not judged: {past.note}")
    exit_code = _exit_code(found)
    return CheckReport(
        memplan_version=__version__,
        verdict=_verdict(found, exit_code),
        exit_code=exit_code,
        config=config,
        base=past.ref,
        checks=tuple(found),
        notes=tuple(notes),
    )


def _checked(
    spec: CheckSpec, files: Files, past: Past, options: Options, allowance: Allowance, *, suggest: bool
) -> CheckResult:
    model = ""
    try:
        run = run_of(spec, files, options.accept)
        model = run.model
        if options.limits_needed and spec.budget_bytes is None and run.gpu is None and spec.max_increase is None:
            raise InputError(
                f"the check {spec.name!r} has no limit",
                hint='add budget = "72 GiB", gpu = "rtx-4090" or max_increase = "1 GiB"',
                code="no_limit",
            )
        answer = estimate(run.recipe)
        limits = judge_limits(spec, answer, run.gpu)
    except UnsupportedError as error:
        return _unanswered(spec, model, error, Status.UNCERTAIN, options)
    except MemplanError as error:
        return _unanswered(spec, model, error, Status.ERROR, options)
    growth = growth_of(spec, run, answer, past, options.accept, allowance)
    statuses = [limit.status for limit in limits] + ([growth.status] if growth.status is not None else [])
    status = max(statuses, key=lambda one: one.rank, default=Status.WITHIN)
    suggestion = _suggestion(spec, run.recipe, answer) if suggest and status is Status.OVER else None
    return CheckResult(
        name=spec.name,
        place=spec.place,
        files=spec.files,
        model=run.model,
        summary=run_text(answer.recipe, run.model),
        severity=spec.severity,
        status=status,
        outcome=_outcome(status, spec, options),
        reasons=reasons_of(limits, growth, answer.unsupported),
        message=spec.message,
        limits=limits,
        growth=growth,
        level=spec.level,
        expected_bytes=peak_bytes(answer, spec.level),
        peak=answer.peak,
        components=answer.components,
        unsupported=answer.unsupported,
        suggestion=suggestion,
        problem=None,
    )


def _unanswered(spec: CheckSpec, model: str, error: MemplanError, status: Status, options: Options) -> CheckResult:
    place = f"{spec.place}: " if spec.place and status is Status.ERROR else ""
    problem = Problem(code=error.code, message=f"{place}{error.message}", hint=error.hint, exit_code=error.exit_code)
    return CheckResult(
        name=spec.name,
        place=spec.place,
        files=spec.files,
        model=model,
        summary="",
        severity=spec.severity,
        status=status,
        outcome=_outcome(status, spec, options),
        reasons=(error.message,),
        message=spec.message,
        limits=(),
        growth=Growth(base="none", level=spec.level),
        level=spec.level,
        expected_bytes=None,
        peak=None,
        components=(),
        unsupported=(error.message,) if status is Status.UNCERTAIN else (),
        suggestion=None,
        problem=problem,
    )


def _outcome(status: Status, spec: CheckSpec, options: Options) -> Outcome:
    if status is Status.ERROR:
        return Outcome.ERROR
    if status is Status.WITHIN:
        return Outcome.PASS
    wanted = Outcome.FAIL
    if status is Status.UNCERTAIN:
        wanted = Outcome(options.on_uncertain or spec.on_uncertain)  # both have the same words
    return Outcome.WARN if wanted is Outcome.FAIL and spec.severity is Severity.WARN else wanted


def _exit_code(results: Sequence[CheckResult]) -> int:
    """What is broken comes before what is over: with a check that was not judged, nobody knows whether all are within."""
    broken = [result.problem.exit_code for result in results if result.outcome is Outcome.ERROR and result.problem]
    if broken:
        return 2 if 2 in broken else broken[0]
    failed = {result.status for result in results if result.outcome is Outcome.FAIL}
    if failed & {Status.OVER, Status.GREW}:
        return 1
    return 3 if failed else 0


def _verdict(results: Sequence[CheckResult], exit_code: int) -> str:
    if exit_code == 0:
        return "warn" if any(result.outcome is Outcome.WARN for result in results) else "pass"
    return {1: "over", 3: "uncertain"}.get(exit_code, "error")


def _suggestion(spec: CheckSpec, recipe: Recipe, answer: Estimate) -> Suggestion | None:
    """The planner's least painful change on the same hardware; None where it finds none or judges another level."""
    from memplan.catalog.gpus import get_gpu
    from memplan.planner import Tier, plan

    if answer.unsupported or (spec.budget_bytes is not None and spec.level is not Level.DEVICE):
        return None
    budget = spec.budget_bytes
    if budget is not None and recipe.gpu is not None and budget > get_gpu(recipe.gpu).usable_bytes:
        budget = None
    try:
        found = plan(recipe, budget_bytes=budget, highest_tier=Tier.DIFFERENT_TRAINING, max_changes=2).cheapest
    except MemplanError:
        return None
    if found is None:
        return None
    changed = estimate(recipe.replace(**found.sets))
    limits = judge_limits(spec, changed, recipe.gpu)
    if any(limit.status is not Status.WITHIN for limit in limits):  # a headroom that is wider than the planner's
        return None
    verdict = found.verdict
    return Suggestion(
        title=found.title, sets=found.sets, expected_bytes=verdict.expected_bytes, upper_bytes=verdict.upper_bytes
    )
