"""A report of checks in the forms that people and CI services read; each is a function of the report alone."""

from __future__ import annotations

from enum import StrEnum

from memplan.budget.result import CheckReport


class Format(StrEnum):
    """Forms of a report."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    GITHUB = "github"
    JUNIT = "junit"


def rendered(report: CheckReport, form: Format) -> str:
    """The report in a form, with a newline at its end."""
    if form is Format.JSON:
        return report.to_json() + "\n"
    if form is Format.MARKDOWN:
        return report.to_markdown()
    if form is Format.GITHUB:
        from memplan.budget.formats.github import check_annotations

        return check_annotations(report)
    if form is Format.JUNIT:
        from memplan.budget.formats.junit import check_junit

        return check_junit(report)
    return report.to_text()
