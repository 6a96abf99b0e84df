"""The command line as a process: pipes, terminals, imports, version."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

import memplan

ESTIMATE = ("estimate", "--model", "mistral-7b-v0.1", "--method", "qlora", "--gpu", "rtx-4090")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "memplan", *arguments]


def _piped(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, check=False, timeout=60)


def _on_terminal(columns: int, *arguments: str, **environment: str) -> str:
    """What the command writes to a terminal of that width."""
    leader, follower = pty.openpty()
    # Rich asks COLUMNS before it asks the terminal.
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    variables.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
    process = subprocess.Popen(_command(*arguments), stdout=follower, stderr=follower, env=variables)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65_536)
        except OSError:  # Linux says so when the other side has gone
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    process.wait(timeout=60)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_json_is_alone_on_stdout() -> None:
    done = _piped(*ESTIMATE, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["verdict"]["gpu"] == "rtx-4090"


def test_errors_leave_stdout_empty_and_show_no_traceback() -> None:
    done = _piped("estimate", "--model", "mistral-7b-v0.1", "--gpu", "rtx-499")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown GPU 'rtx-499'\n")
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(_command("gpus"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_version_and_help() -> None:
    assert _piped("--version").stdout == f"memplan {memplan.__version__}\n"
    bare = _piped()
    assert bare.returncode == 0
    for command in ("estimate", "trace", "explain", "models", "gpus", "methods", "optimizers", "accuracy"):
        assert f"\n  {command} " in bare.stdout


def test_help_has_headings_and_whole_names() -> None:
    shown = _on_terminal(80, "estimate", "--help")
    for heading in (
        "Arguments",
        "Model",
        "Method",
        "Precision and quantization",
        "Batch",
        "Step",
        "Hardware",
        "Output",
    ):
        assert f"\n{heading}:\n" in shown
    assert "--prepare-model-for-kbit-training / --no-prepare-model-for-kbit-training" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_a_terminal_gets_lines_that_fit(columns: int) -> None:
    shown = ANSI.sub("", _on_terminal(columns, *ESTIMATE))
    assert "█" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= min(columns, 120)
    assert re.search(r"activations +[\d.]+ [GM]iB +[\d.]+ %", shown)


def test_the_verdict_is_one_line_of_eighty_columns() -> None:
    first = ANSI.sub("", _on_terminal(80, *ESTIMATE)).splitlines()[0]
    assert re.fullmatch(r" ✓ Fits on RTX 4090 24GB: .* of 23\.5 GiB usable *", first)


def test_colour_on_a_terminal_unless_it_is_not_wanted() -> None:
    assert "\x1b[" in _on_terminal(80, "gpus", "rtx")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", _on_terminal(80, "gpus", "rtx", NO_COLOR="1"))
    assert "\x1b[" not in _on_terminal(80, "gpus", "rtx", TERM="dumb")


def _imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys\n"
        "from memplan.cli import main\n"
        f"sys.argv = {['memplan', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


def test_an_estimate_in_a_pipe_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "fastapi", "numpy", "rich", "yaml", "memplan.trace"}
    assert _imported_by(*ESTIMATE, "--json") & heavy == set()


def test_that_test_can_fail() -> None:
    assert find_spec("rich") is not None
    code = "import rich, sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rich" in done.stderr.split()
