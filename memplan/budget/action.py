"""The steps of the GitHub Action, as one script: `python -m memplan.budget.action`.

Reads its inputs from the environment, so that nothing a pull request writes is ever part of a shell command:

    INPUT_CONFIG     budget file; empty finds it
    INPUT_BASE       git ref, auto, or none
    INPUT_COMMENT    auto or never
    INPUT_FAIL_ON    over (what the budget file says), uncertain (that too), never (a broken check still fails)
    MEMPLAN_TOKEN    may write comments; without one there is none

and GitHub's own variables. Writes annotations and the report to the log, the report to the step summary, verdict, peak-bytes
and json-path to the outputs, and a comment where it can; a comment that cannot be written fails nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir

from memplan.budget.api import check
from memplan.budget.comment import PullRequest, upsert
from memplan.budget.formats import Format, rendered
from memplan.budget.formats.github import data
from memplan.budget.formats.markdown import marker_of
from memplan.budget.git import AUTO
from memplan.budget.result import CheckReport
from memplan.errors import MemplanError, UnknownNameError

COMMENT = ("auto", "never")
FAIL_ON = ("over", "uncertain", "never")
_FETCH_TIMEOUT_S = 120


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run all steps; returns the exit code of the step."""
    try:
        comment = _choice(environment, "INPUT_COMMENT", COMMENT)
        fail_on = _choice(environment, "INPUT_FAIL_ON", FAIL_ON)
        base = environment.get("INPUT_BASE", "").strip() or AUTO
        if base == AUTO:
            _fetch_target(environment)
        report = check(
            environment.get("INPUT_CONFIG", "").strip() or None,
            base=None if base == "none" else base,
            on_uncertain="fail" if fail_on == "uncertain" else None,
        )
    except MemplanError as error:
        print(f"::error title=memplan::{data(str(error))}")
        _write_outputs(environment, {"verdict": "error", "peak-bytes": "", "json-path": ""})
        return error.exit_code
    sys.stdout.write(rendered(report, Format.GITHUB))
    # A line of a log that begins with two colons is a command, whoever wrote it.
    print("".join(f"| {line}\n" for line in rendered(report, Format.TEXT).splitlines()), end="", flush=True)
    json_path = Path(environment.get("RUNNER_TEMP") or gettempdir()) / "memplan.json"
    json_path.write_text(rendered(report, Format.JSON), "utf-8")
    markdown = rendered(report, Format.MARKDOWN)
    _append(environment.get("GITHUB_STEP_SUMMARY"), markdown + "\n")
    peaks = [one.peak.device_bytes for one in report.checks if one.peak is not None]
    outputs = {"verdict": report.verdict, "peak-bytes": str(max(peaks)) if peaks else "", "json-path": str(json_path)}
    _write_outputs(environment, outputs)
    if comment == "auto":
        print(f"memplan: {_comment(report, markdown, environment)}")
    return 0 if fail_on == "never" and report.exit_code in (1, 3) else report.exit_code


def _choice(environment: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = environment.get(name, "").strip() or allowed[0]
    if value not in allowed:
        raise UnknownNameError(name.removeprefix("INPUT_").lower().replace("_", "-"), value, allowed)
    return value


def _fetch_target(environment: Mapping[str, str]) -> None:
    """Get the tip of the target branch, which a shallow checkout lacks; `check` says so where that fails."""
    target = environment.get("GITHUB_BASE_REF", "")
    known = ["git", "rev-parse", "--verify", "--quiet", f"refs/remotes/origin/{target}"]
    if not target or subprocess.run(known, capture_output=True, check=False).returncode == 0:
        return
    refspec = f"+refs/heads/{target}:refs/remotes/origin/{target}"
    fetch = ["git", "fetch", "--quiet", "--no-tags", "--depth=1", "origin", refspec]
    try:
        done = subprocess.run(fetch, capture_output=True, check=False, timeout=_FETCH_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"::notice title=memplan::{data(f'the target branch was not fetched: {error}')}")
        return
    if done.returncode:
        print(
            f"::notice title=memplan::{data('the target branch was not fetched: ' + done.stderr.decode(errors='replace'))}"
        )


def _comment(report: CheckReport, body: str, environment: Mapping[str, str]) -> str:
    """What became of the comment, in a sentence."""
    number = pull_request_number(environment)
    if number is None:
        return "no comment: this is no pull request"
    token = environment.get("MEMPLAN_TOKEN", "")
    if not token:
        return "no comment: there is no token"
    try:
        to = PullRequest(
            environment.get("GITHUB_API_URL") or "https://api.github.com",
            environment.get("GITHUB_REPOSITORY", ""),
            number,
        )
        done = upsert(body, marker_of(report), to, token, create=is_worth_a_comment(report))
    except MemplanError as error:
        # A fork's token may not write; that is no fault of the change.
        return f"no comment: {' '.join(error.message.split())}"
    return f"the comment is {done}"


def is_worth_a_comment(report: CheckReport) -> bool:
    """Whether a first comment says anything: something is not within its limits, new, or has another peak."""
    return report.verdict != "pass" or any(
        one.growth.base in ("new", "failed") or one.growth.change_bytes or not one.growth.is_known
        for one in report.checks
        if one.growth.base != "none"
    )


def pull_request_number(environment: Mapping[str, str]) -> int | None:
    """The number in the event of a pull request; None for other events."""
    path = environment.get("GITHUB_EVENT_PATH", "")
    if not path or not environment.get("GITHUB_EVENT_NAME", "").startswith("pull_request"):
        return None
    try:
        event = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    request = event.get("pull_request") if isinstance(event, dict) else None
    number = request.get("number") if isinstance(request, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _write_outputs(environment: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    assert not any("\n" in value for value in outputs.values())
    _append(environment.get("GITHUB_OUTPUT"), "".join(f"{name}={value}\n" for name, value in outputs.items()))


def _append(path: str | None, text: str) -> None:
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    sys.exit(main())
