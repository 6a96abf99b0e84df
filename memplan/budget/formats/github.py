"""Annotations for GitHub Actions: workflow commands, one a line, at most ten, of which GitHub shows no more a step."""

from __future__ import annotations

from memplan.budget.result import CheckReport, CheckResult, Outcome
from memplan.budget.wording import headline_of, sentences_of

MOST = 10


def check_annotations(report: CheckReport) -> str:
    """Errors first, then warnings; a notice with the verdict where there is neither."""
    order = {Outcome.ERROR: 0, Outcome.FAIL: 1, Outcome.WARN: 2}
    found = sorted((one for one in report.checks if one.outcome in order), key=lambda one: order[one.outcome])
    word, text = headline_of(report)
    if not found:
        return f"::notice title=memplan::{data(f'{word} {text}')}\n"
    shown = found if len(found) <= MOST else found[: MOST - 1]
    lines = [_line(one) for one in shown]
    if len(found) > len(shown):
        lines.append(f"::error title=memplan::{data(f'{len(found) - len(shown)} more checks; {word} {text}')}")
    return "".join(f"{line}\n" for line in lines)


def _line(result: CheckResult) -> str:
    kind = "warning" if result.outcome is Outcome.WARN else "error"
    file, _, line = _place(result).rpartition(":")
    place = f"file={prop(file)},line={line}," if line.isdigit() else ""
    return f"::{kind} {place}title={prop(f'memplan: {result.name}')}::{data(chr(10).join(sentences_of(result)))}"


def _place(result: CheckResult) -> str:
    """The line of the limit that is not kept; else that of the check."""
    worst = [limit.place for limit in result.limits if limit.status is result.status and limit.place]
    if result.growth.status is result.status and result.growth.place:
        worst.append(result.growth.place)
    return worst[0] if worst else result.place


def data(text: str) -> str:
    """`text` as the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def prop(text: str) -> str:
    """`text` as a property of a workflow command."""
    return data(text).replace(":", "%3A").replace(",", "%2C")
