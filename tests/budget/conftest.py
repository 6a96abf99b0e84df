"""A repository with a history, made anew for each test; and the command line run in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, Run
from tests.cli.conftest import run as run

# Small enough for a card, large enough for its numbers to be seen in GiB.
SFT = """\
model: HuggingFaceTB/SmolLM2-135M
method: full
dtype: bfloat16
micro_batch_size: {batch}
sequence_length: {length}
gpu: rtx-4090
"""
BUDGETS = """\
schema = 1

[[check]]
name = "sft"
recipe_file = "configs/sft.yaml"
budget = "{budget}"
headroom = "5%"
max_increase = "+10%"
message = "Ask @infra before raising this."

[[check]]
name = "classifier"
recipe = {{ model = "openai-community/gpt2", sequence_length = 256, gpu = "t4" }}
"""


class Repository:
    """A git repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        """Run git; who commits and when is fixed, so that hashes are."""
        who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in
               (("NAME", "a"), ("EMAIL", "a@example.org"), ("DATE", "2026-01-01T00:00:00Z"))}  # fmt: skip
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            capture_output=True, text=True, check=True, timeout=60, env={**clean, **who, **settings},
        )  # fmt: skip
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")

    def sft(self, batch: int, length: int = 512) -> None:
        """Write the recipe."""
        self.write("configs/sft.yaml", SFT.format(batch=batch, length=length))

    def commit(self, message: str) -> str:
        """Commit everything; returns the hash."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository with budgets and one commit on `main`; the working folder is its top."""
    folder = tmp_path / "repository"
    folder.mkdir()
    made = Repository(folder)
    made.write("memplan.toml", BUDGETS.format(budget="12 GiB"))
    made.sft(batch=4)
    made.commit("first")
    for name in [name for name in os.environ if name.startswith(("GITHUB_", "INPUT_", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    return made


__all__ = ["Callable", "Outcome", "Repository", "Run"]
