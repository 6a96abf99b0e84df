"""What README shows runs, word for word."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SHELL = [
    line
    for block in re.findall(r"^<!-- run -->\n```bash\n(.*?)^```", README, re.M | re.S)
    for line in block.splitlines()
]


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


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
