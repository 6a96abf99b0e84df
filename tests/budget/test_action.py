"""The action: its steps run here as GitHub runs them, and its files hold together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.budget.conftest import BUDGETS, Repository
from tests.budget.test_comment import FakeGitHub
from tests.budget.test_comment import github as github

TOP = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((TOP / "action.yml").read_text("utf-8"))
CHECK = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "check")


class Runner:
    """A runner's folders, and the check step's own shell script."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.temp = folder
        self.repository = repository
        (folder / "memplan" / "bin").mkdir(parents=True)
        python = folder / "memplan" / "bin" / "python"
        # A wrapper, as a link would lose the virtual environment.
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)

    def event(self, number: int) -> dict[str, str]:
        """Variables of a pull request."""
        path = self.temp / "event.json"
        path.write_text(json.dumps({"pull_request": {"number": number}}))
        return {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": str(path), "GITHUB_REPOSITORY": "o/r"}

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the step; inputs that are not given have the action's defaults."""
        for name in ("output", "summary"):
            (self.temp / name).write_text("")
        inputs = {
            f"INPUT_{name.upper().replace('-', '_')}": entry["default"] for name, entry in ACTION["inputs"].items()
        }
        inputs.pop("INPUT_TOKEN")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "INPUT_"))}
        runner = {
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_OUTPUT": str(self.temp / "output"),
            "GITHUB_STEP_SUMMARY": str(self.temp / "summary"),
        }
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", CHECK["run"]],
            cwd=self.repository.folder, env={**clean, **runner, **inputs, **variables},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def outputs(self) -> dict[str, str]:
        """What the step put out."""
        return dict(line.split("=", 1) for line in (self.temp / "output").read_text().splitlines())

    def summary(self) -> str:
        """What the step wrote to the summary."""
        return (self.temp / "summary").read_text("utf-8")


@pytest.fixture
def runner(repository: Repository, tmp_path: Path) -> Runner:
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(folder, repository)


def test_a_pull_request_that_grew(runner: Runner, github: FakeGitHub) -> None:
    runner.repository.git("checkout", "--quiet", "-b", "longer")
    runner.repository.sft(batch=4, length=1024)
    runner.repository.commit("longer")
    pull = {**runner.event(7), "GITHUB_API_URL": github.url, "GITHUB_BASE_REF": "main", "MEMPLAN_TOKEN": "t"}
    done = runner.run(**pull)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("::notice title=memplan::the target branch was not fetched: ")  # there is no origin
    assert done.stdout.splitlines()[1].startswith("::error file=memplan.toml,line=8,title=memplan%3A sft::grew by ")
    assert "| Over budget: 1 of 2 checks grew too much" in done.stdout
    assert "memplan: the comment is created" in done.stdout
    outputs = runner.outputs()
    assert outputs["verdict"] == "over"
    report = json.loads(Path(outputs["json-path"]).read_text("utf-8"))
    assert int(outputs["peak-bytes"]) == max(one["peak"]["device_bytes"] for one in report["checks"])
    assert report["base"]["ref"] == "main"
    body = github.comments[0]["body"]
    assert body.startswith(
        "<!-- memplan:check:memplan.toml -->\n### memplan: Over budget: 1 of 2 checks grew too much\n"
    )
    assert body.rstrip() == runner.summary().rstrip()
    runner.repository.sft(batch=4)
    again = runner.run(**pull)
    assert again.returncode == 0
    assert "the comment is updated" in again.stdout
    assert len(github.comments) == 1
    assert "Pass: 2 checks within their limits" in github.comments[0]["body"]


def test_nothing_is_said_where_nothing_changed(runner: Runner, github: FakeGitHub) -> None:
    pull = {**runner.event(7), "GITHUB_API_URL": github.url, "GITHUB_BASE_REF": "main", "MEMPLAN_TOKEN": "t"}
    done = runner.run(**pull)
    assert done.returncode == 0
    assert "memplan: the comment is left out" in done.stdout
    assert github.comments == []


def test_a_fork_may_not_write_and_stays_green(runner: Runner, github: FakeGitHub) -> None:
    runner.repository.sft(batch=3)
    github.failures = [403]
    done = runner.run(**runner.event(7), GITHUB_API_URL=github.url, GITHUB_BASE_REF="main", MEMPLAN_TOKEN="t")
    assert done.returncode == 0
    assert "memplan: no comment: GitHub refuses GET with 403" in done.stdout
    assert "no comment: there is no token" in runner.run(**runner.event(7)).stdout
    assert "no comment: this is no pull request" in runner.run(GITHUB_EVENT_NAME="push").stdout


def test_fail_on(runner: Runner) -> None:
    budgets = BUDGETS.format(budget="5 GiB").replace('"5%"', '"10 GiB"')
    runner.repository.write("memplan.toml", budgets)
    assert runner.run(INPUT_BASE="none").returncode == 0
    assert runner.run(INPUT_BASE="none", INPUT_FAIL_ON="uncertain").returncode == 3
    assert runner.outputs()["verdict"] == "uncertain"
    runner.repository.write("memplan.toml", BUDGETS.format(budget="1 GiB"))
    assert runner.run(INPUT_BASE="none", INPUT_FAIL_ON="never").returncode == 0
    assert runner.outputs()["verdict"] == "over"


def test_what_is_broken_fails_whatever_is_asked_for(runner: Runner) -> None:
    wrong = runner.run(INPUT_FAIL_ON="sometimes")
    assert (wrong.returncode, runner.outputs()["verdict"]) == (2, "error")
    assert wrong.stdout.startswith("::error title=memplan::unknown fail-on 'sometimes'")
    runner.repository.write("memplan.toml", "schema = 1\n")
    assert runner.run(INPUT_FAIL_ON="never").returncode == 2
    assert runner.run(INPUT_CONFIG="none.toml").returncode == 4
    runner.repository.write("memplan.toml", BUDGETS.format(budget="12 GiB"))
    assert runner.run(INPUT_BASE="nowhere").returncode == 4


def test_the_target_branch_is_fetched_where_it_is_missing(runner: Runner, tmp_path: Path) -> None:
    origin = runner.repository
    origin.git("checkout", "--quiet", "-b", "longer")
    origin.sft(batch=4, length=1024)
    origin.commit("longer")
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "--depth=1", "--branch=longer", origin.folder.as_uri(), str(clone)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    runner.repository = Repository(clone)
    done = runner.run(GITHUB_BASE_REF="main")
    assert done.returncode == 1, done.stdout
    assert json.loads(Path(runner.outputs()["json-path"]).read_text("utf-8"))["base"]["ref"] == "origin/main"
    gone = runner.run(GITHUB_BASE_REF="gone")
    assert gone.returncode == 4
    assert "the target branch was not fetched" in gone.stdout


def test_text_of_others_is_no_command(runner: Runner) -> None:
    hostile = BUDGETS.format(budget="1 GiB").replace('"sft"', '"::set-output name=verdict::pass"')
    runner.repository.write("memplan.toml", hostile.replace("Ask @infra", "::error::x\\n::stop-commands::y"))
    done = runner.run(INPUT_BASE="none")
    commands = [line for line in done.stdout.splitlines() if line.lstrip().startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith("::error file=memplan.toml,line=6,")


def test_the_action_file() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert not any("uses" in step for step in ACTION["runs"]["steps"])  # nobody else's code
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]  # values reach the shell as variables alone
    assert sorted(ACTION["outputs"]) == ["json-path", "peak-bytes", "verdict"]
    assert all(f"outputs.{name} " in entry["value"] for name, entry in ACTION["outputs"].items())
    read = set(re.findall(r"inputs\.([a-z-]+)", json.dumps(CHECK["env"])))
    assert read == set(ACTION["inputs"])


def test_the_hook_runs_the_check() -> None:
    (hook,) = yaml.safe_load((TOP / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert hook["entry"] == "memplan check"
    assert hook["pass_filenames"] is False
    assert hook["language"] == "python"
    names = (
        "memplan.toml",
        "pyproject.toml",
        "configs/sft.yaml",
        "a.yml",
        "model/config.json",
        "train.py",
        "README.md",
    )
    assert [bool(re.search(hook["files"], name)) for name in names] == [True] * 5 + [False] * 2
