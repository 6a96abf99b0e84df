"""The question of `POST /check`: a budget file as JSON, the texts of the files it names, and the same of a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from memplan.budget import CheckReport, Content, check_mapping
from memplan.budget.result import CheckResult
from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.web.hints import over_rest
from memplan.web.problems import Problem, ProblemError
from memplan.web.recipes import accept

_KEYS = ("config", "files", "base")
_BASE_KEYS = ("config", "files")


def report_of(body: Mapping[str, Any], max_checks: int, max_explained: int) -> CheckReport:
    """The report that a client asked for. Neither a disk nor git is looked at.

    A check that cannot be judged (an unknown model, a file that was not sent) is reported by that check, as on the command
    line; an error is only what keeps every check from being judged.

    Args:
        body: `config`, and perhaps `files` and `base`.
        max_checks: in each of the two budget files.
        max_explained: estimates that may be made to say what each changed key does.

    Raises:
        InputError: an unknown key, or a value of the wrong kind.
        ProblemError: a budget file that is wrong.
    """
    now = _content(body, _KEYS, "", max_checks)
    past = body.get("base")
    base = None
    if past is not None:
        if not isinstance(past, dict):
            raise InvalidValueError("base", past, 'an object: {"config": ..., "files": ...}')
        base = _content(past, _BASE_KEYS, "base.", max_checks)
    try:
        report = check_mapping(
            now.data, files=now.files, base=base, accept=accept, suggest=True, most_explained=max_explained
        )
    except InputError as error:
        place = error.message.partition(":")[0]
        field = "base.config" if place == "base" else "config"
        raise ProblemError(Problem(422, error.code, error.message, over_rest(error.hint), field)) from None
    return report.model_copy(update={"checks": tuple(map(_in_its_words, report.checks))})


def _in_its_words(check: CheckResult) -> CheckResult:
    """A check whose hint speaks of keys."""
    problem = check.problem
    if problem is None:
        return check
    return check.model_copy(update={"problem": problem.model_copy(update={"hint": over_rest(problem.hint)})})


def _content(data: Mapping[str, Any], allowed: tuple[str, ...], within: str, max_checks: int) -> Content:
    for key in data:
        if key not in allowed:
            unknown = UnknownNameError("key", key, allowed)
            raise ProblemError(Problem(422, unknown.code, unknown.message, unknown.hint, f"{within}{key}"[:200]))
    config = data.get("config")
    if not isinstance(config, dict):
        raise InvalidValueError(f"{within}config", config, "an object: what a memplan.toml holds, as JSON")
    checks = config.get("check")
    if isinstance(checks, list) and len(checks) > max_checks:
        raise InvalidValueError(
            f"{within}config",
            f"{len(checks)} checks",
            f"at most {max_checks} checks in one request",
            hint="send several requests; `memplan check` on your own machine takes 500",
        )
    return Content(config, _files(data.get("files", {}), f"{within}files"))


def _files(files: Any, field: str) -> dict[str, str]:
    if not isinstance(files, dict):
        raise InvalidValueError(field, files, 'an object: {"path": "text of the file"}')
    seen: dict[str, str] = {}
    for path, text in files.items():
        if not isinstance(text, str):
            raise InvalidValueError(f"{field}.{path[:80]}", text, "the text of the file")
        twin = seen.setdefault(str(PurePosixPath(path)), path)
        if twin != path:  # one of them would be judged, and nobody could tell which
            raise InvalidValueError(field, path, f"one text for one file: {twin[:80]!r} is the same path")
    return files
