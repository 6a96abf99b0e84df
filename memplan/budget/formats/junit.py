"""JUnit XML: a test case a check; over, grown and uncertain are failures, what could not be judged is an error."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from memplan.budget.result import CheckReport, CheckResult, Outcome
from memplan.budget.wording import sentences_of
from memplan.units import format_bytes


def check_junit(report: CheckReport) -> str:
    """The report as XML, without times: they are no part of the answer."""
    failures = sum(one.outcome is Outcome.FAIL for one in report.checks)
    errors = sum(one.outcome is Outcome.ERROR for one in report.checks)
    counts = f'tests="{len(report.checks)}" failures="{failures}" errors="{errors}" skipped="0"'
    cases = "".join(_case(report, one) for one in report.checks)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites name="memplan" {counts}>\n  <testsuite name={_attribute(report.config)} {counts}>\n'
        f"{cases}  </testsuite>\n</testsuites>\n"
    )


def _case(report: CheckReport, result: CheckResult) -> str:
    start = f"    <testcase classname={_attribute(f'memplan.{report.config}')} name={_attribute(result.name)}"
    lines = sentences_of(result)
    text = "\n".join(lines)
    if result.outcome in (Outcome.FAIL, Outcome.ERROR):
        tag = "failure" if result.outcome is Outcome.FAIL else "error"
        kind = result.problem.code if result.problem is not None else str(result.status)
        first = _attribute(lines[0] if lines else str(result.status))
        return (
            f"{start}>\n      <{tag} type={_attribute(kind)} message={first}>{_text(text)}</{tag}>\n    </testcase>\n"
        )
    peak = f"peak {format_bytes(result.expected_bytes)}" if result.expected_bytes is not None else ""
    said = "\n".join(filter(None, (peak, text)))
    return f"{start}>\n      <system-out>{_text(said)}</system-out>\n    </testcase>\n" if said else f"{start}/>\n"


def _text(text: str) -> str:
    return escape(_legal(text))


def _attribute(text: str) -> str:
    return quoteattr(_legal(" ".join(text.split())))


def _legal(text: str) -> str:
    """`text` without the characters that no XML document may hold."""
    return "".join(
        sign
        if sign in "\t\n" or " " <= sign <= "\ud7ff" or "\ue000" <= sign <= "\ufffd" or sign > "\uffff"
        else "\ufffd"
        for sign in text
    )
