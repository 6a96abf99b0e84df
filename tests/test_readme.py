"""What README shows runs, word for word; what asks a service is asked of one that the test starts."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.service import running_service

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SHELL = [
    line
    for block in re.findall(r"^<!-- run -->\n```bash\n(.*?)^```", README, re.M | re.S)
    for line in block.splitlines()
]
CURL = re.findall(r"^curl .*(?:\\\n.*)*", README, re.M)
ADDRESS = "localhost:8000"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a service answers that README's text supposes at `ADDRESS`."""
    with running_service(patient=True) as service:
        yield service.url.removeprefix("http://")


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    if ADDRESS in code:
        code = code.replace(ADDRESS, request.getfixturevalue("address"))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", CURL)
def test_curl(command: str, address: str) -> None:
    answer = curl(command.replace(ADDRESS, address))
    assert answer["verdict"]["fits"] in ("fits", "does_not_fit", "uncertain")
    assert answer["peak"]["device_bytes"] > 0


def curl(command: str) -> Any:
    """What curl would print, as JSON; a machine need not have it. An option that is not understood here is an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-X")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    program, *arguments = shlex.split(command)
    assert program == "curl"
    given = parser.parse_args(arguments)
    headers = dict(re.split(r": *", header, maxsplit=1) for header in given.H)
    data = given.d.encode() if given.d is not None else None
    url = given.url if "://" in given.url else f"http://{given.url}"
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=given.X), timeout=120) as answer:
        return json.load(answer)


@pytest.mark.parametrize("line", SHELL)
def test_shell(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "memplan"
    done = subprocess.run(
        [sys.executable, "-m", "memplan", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1), done.stderr  # 1 is an answer: it does not fit
    assert done.stdout.strip()


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 1
    assert len(SHELL) >= 5
    assert len(CURL) >= 1
    assert all(ADDRESS in command for command in CURL)


def test_the_first_command_ends_as_it_says() -> None:
    first = next(line for line in README.splitlines() if line.startswith("python3 -m venv") and "estimate" in line)
    arguments = shlex.split(first.rpartition("memplan ")[2])
    done = subprocess.run([sys.executable, "-m", "memplan", *arguments], capture_output=True, text=True, check=True)
    shown = re.search(r"^ends with\n\n```text\n(.*?)\n\n(.*?)^```", README, re.M | re.S)
    assert shown is not None
    assert done.stdout.splitlines()[0] == shown[1]
    assert shown[2].splitlines()[0] in done.stdout


def test_the_budget_file_is_one(tmp_path: Path) -> None:
    block = re.search(r"^```toml\n(.*?)^```", README, re.M | re.S)
    assert block is not None
    (tmp_path / "memplan.toml").write_text(block[1])
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "check", str(tmp_path / "memplan.toml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
