"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

GPT2 = {"model": "openai-community/gpt2", "sequence_length": 128}

def test_fits(memplan_budget):
    result = memplan_budget("configs/gpt2.yaml", gpu="t4")
    assert result.status == "within"

def test_recipe_and_keys(memplan_budget):
    import memplan
    memplan_budget(memplan.Recipe(**GPT2), budget="40 GiB")
    memplan_budget(budget="40 GiB", micro_batch_size=2, **GPT2)

def test_over(memplan_budget):
    memplan_budget("configs/gpt2.yaml", budget="1 GiB", micro_batch_size=8)

@pytest.mark.memplan_budget("configs/gpt2.yaml", gpu="t4", budget="1 GiB", headroom="0 B", message="Ask first.")
def test_marked():
    raise AssertionError("the budget is judged before the test runs")

@pytest.mark.memplan_budget("configs/gpt2.yaml", gpu="h100")
def test_marked_within():
    pass

def test_not_covered(memplan_budget):
    memplan_budget(GPT2, gpu="t4", stack="unsloth")

def test_not_covered_warns(memplan_budget):
    with pytest.warns(UserWarning, match="not covered"):
        memplan_budget(GPT2, gpu="t4", stack="unsloth", on_uncertain="warn")

def test_mistake(memplan_budget):
    memplan_budget(GPT2, budget="72")

def test_missing(memplan_budget):
    memplan_budget("configs/none.yaml", gpu="t4")

def test_no_limit(memplan_budget):
    memplan_budget(GPT2)
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of `TESTS` prints."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    (folder / "configs").mkdir()
    (folder / "configs" / "gpt2.yaml").write_text("model: openai-community/gpt2\nsequence_length: 128\n")
    (folder / "test_budget.py").write_text(TESTS)
    return run_pytest(folder, "-rA")


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin(), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def plugin() -> list[str]:
    """`-p` where the installed package does not register it yet."""
    from importlib.metadata import entry_points

    known = any(entry.value == "memplan.budget.pytest_plugin" for entry in entry_points(group="pytest11"))
    return [] if known else ["-p", "memplan.budget.pytest_plugin"]


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("test_fits", True), ("test_recipe_and_keys", True), ("test_over", False), ("test_marked_within", True),
        ("test_not_covered", False), ("test_not_covered_warns", True), ("test_mistake", False), ("test_missing", False),
        ("test_no_limit", False),
    ],
)  # fmt: skip
def test_outcomes(outcome: str, name: str, passes: bool) -> None:
    assert f"{'PASSED' if passes else 'FAILED'} test_budget.py::{name}" in outcome


def test_messages_are_readable(outcome: str) -> None:
    assert "ERROR test_budget.py::test_marked" in outcome  # judged in the set-up
    assert "Over budget: 1 of 1 check over" in outcome
    assert "message  " in outcome
    assert "the budget is judged before" not in outcome
    assert 'it could mean "72 GiB"' in outcome
    assert "no such file: configs/none.yaml" in outcome
    assert "has no limit" in outcome
    assert "Traceback" not in outcome
    assert "memplan/budget/" not in outcome


def test_nothing_heavy_at_import(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\ndef test_light():\n"
        "    heavy = {'torch', 'typer', 'rich', 'yaml', 'memplan.engine', 'memplan.budget.api'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(tmp_path)
    assert "@pytest.mark.memplan_budget(recipe" in run_pytest(tmp_path, "--markers")
