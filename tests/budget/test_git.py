"""Files of a commit, and which commit is the base."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from memplan.budget.git import Base, GitFiles, base_of
from memplan.errors import FileFormatError, InputError, UnavailableError
from tests.budget.conftest import Repository


def test_files_are_those_of_the_commit(repository: Repository) -> None:
    base = Base("main", repository.git("rev-parse", "HEAD"))
    repository.sft(batch=99)
    files = GitFiles(repository.folder, base)
    assert "micro_batch_size: 4" in files.read("configs/sft.yaml")
    below = GitFiles(repository.folder / "configs", base)
    assert below.read("../memplan.toml") == files.read("memplan.toml")
    assert below.read("sft.yaml") == files.read(str(repository.folder / "configs" / "sft.yaml"))
    assert [files.has(path) for path in ("configs/sft.yaml", "configs", "none", "../x", "/etc/passwd")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_what_is_not_there(repository: Repository) -> None:
    files = GitFiles(repository.folder, Base("main", repository.git("rev-parse", "HEAD")))
    with pytest.raises(UnavailableError, match=r"no such file: none\.yaml at main"):
        files.read("none.yaml")
    with pytest.raises(UnavailableError, match="outside of the repository"):
        files.read("../other.yaml")


def test_odd_files(repository: Repository) -> None:
    repository.write("big.yaml", "#" * (300 * 1024))
    (repository.folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    files = GitFiles(repository.folder, Base("main", repository.commit("odd")))
    with pytest.raises(FileFormatError, match="larger than 256 KiB"):
        files.read("big.yaml")
    with pytest.raises(FileFormatError, match="not UTF-8"):
        files.read("bytes.yaml")


def test_auto_is_the_merge_base(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "--quiet", "-b", "feature")
    repository.sft(batch=5)
    repository.commit("feature")
    repository.git("checkout", "--quiet", "main")
    repository.sft(batch=6)
    tip = repository.commit("main goes on")
    repository.git("checkout", "--quiet", "feature")
    assert base_of("auto", repository.folder, {}) == Base("main", first)
    assert base_of("auto", repository.folder, {"GITHUB_BASE_REF": "main"}) == Base("main", first)
    assert base_of("main", repository.folder, {}) == Base("main", tip)


def test_a_shallow_clone_is_compared_with_the_tip(repository: Repository, tmp_path: Path) -> None:
    repository.git("checkout", "--quiet", "-b", "feature")
    repository.sft(batch=5)
    repository.commit("feature")
    repository.git("checkout", "--quiet", "main")
    repository.sft(batch=6)
    tip = repository.commit("main goes on")
    clone = tmp_path / "clone"
    url = repository.folder.as_uri()
    for command in (
        ["git", "clone", "--quiet", "--depth=1", "--branch=feature", url, str(clone)],
        [
            "git",
            "-C",
            str(clone),
            "fetch",
            "--quiet",
            "--depth=1",
            "origin",
            "+refs/heads/main:refs/remotes/origin/main",
        ],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert base_of("auto", clone, {"GITHUB_BASE_REF": "main"}) == Base("origin/main", tip)


def test_auto_without_anything_to_compare_with(repository: Repository) -> None:
    repository.git("branch", "-m", "main", "trunk")
    assert base_of("auto", repository.folder, {}) is None


@pytest.mark.parametrize("ref", ["", " ", "-x", "--output=/tmp/x", "a b", "a\nb"])
def test_what_is_no_ref(repository: Repository, ref: str) -> None:
    with pytest.raises(InputError, match="is no git ref"):
        base_of(ref, repository.folder)


def test_without_git(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="git is not installed"):
        base_of("main", repository.folder)
