"""Files as they were at a commit, read through git's object store: nothing is checked out, no file is changed."""

from __future__ import annotations

import os
import posixpath
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memplan.budget.files import no_such_file
from memplan.documents import MAX_FILE_BYTES
from memplan.errors import FileFormatError, InputError, UnavailableError

AUTO = "auto"
_DEFAULT_BRANCHES = ("origin/HEAD", "origin/main", "origin/master", "main", "master")
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Base:
    """What is compared with.

    Attributes:
        ref: as the user or the CI service calls it.
        commit: its full hash.
    """

    ref: str
    commit: str


class GitFiles:
    """Files of a commit.

    Args:
        folder: a folder of the working tree; paths are relative to it.
        base: the commit.
    """

    def __init__(self, folder: Path, base: Base) -> None:
        self.top = repository_of(folder)
        self.prefix = folder.resolve().relative_to(self.top).as_posix()
        self.base = base

    def read(self, path: str) -> str:
        """See `memplan.budget.files.Files.read`."""
        inside = self._inside(path)
        data = _git(self.top, "cat-file", "blob", f"{self.base.commit}:{inside}")
        if data is None:
            raise no_such_file(path, f" at {self.base.ref}")
        if len(data) > MAX_FILE_BYTES:
            raise FileFormatError(f"{path} at {self.base.ref} is larger than {MAX_FILE_BYTES // 1024} KiB")
        try:
            return data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{path} at {self.base.ref} is not UTF-8 text (byte {error.start})") from None

    def has(self, path: str) -> bool:
        """See `memplan.budget.files.Files.has`."""
        try:
            return _git(self.top, "cat-file", "-t", f"{self.base.commit}:{self._inside(path)}") == b"blob\n"
        except UnavailableError:
            return False

    def _inside(self, path: str) -> str:
        absolute = Path(path).is_absolute()
        place = Path(path).resolve().as_posix() if absolute else (self.top / self.prefix / path).as_posix()
        inside = posixpath.relpath(posixpath.normpath(place), self.top.as_posix())
        if inside.startswith(".."):
            raise UnavailableError(f"{path} is outside of the repository, which says nothing of it at {self.base.ref}")
        return inside


def repository_of(folder: Path) -> Path:
    """The top folder of the working tree.

    Raises:
        UnavailableError: no repository, or no git.
    """
    found = _git(folder, "rev-parse", "--show-toplevel")
    if found is None:
        raise UnavailableError(
            f"{folder} is in no git repository that can be read: {_complaint(folder)}",
            hint="a base needs one; leave --base out to judge without it",
            code="no_repository",
        )
    return Path(found.decode().strip()).resolve()


def base_of(ref: str, folder: Path, environment: Mapping[str, str] = os.environ) -> Base | None:
    """The commit that `ref` names; None where `auto` finds nothing to compare with.

    `auto` is the merge base of HEAD and the branch that a pull request goes to (`GITHUB_BASE_REF`); where there is none, of
    HEAD and the default branch. A shallow clone that lacks the merge base is compared with the branch itself.

    Raises:
        InputError: a ref that is none.
        UnavailableError: the ref is not in this clone, no repository, or no git.
    """
    if not ref.strip() or ref.startswith("-") or any(sign.isspace() or ord(sign) < 32 for sign in ref):
        raise InputError(f"{ref!r} is no git ref", hint="a branch, tag or commit, such as origin/main; or auto")
    top = repository_of(folder)
    if ref != AUTO:
        return _known(ref, top)
    target = environment.get("GITHUB_BASE_REF", "")
    if target:
        remote = f"origin/{target}"
        return _merge_base(_known(remote if _commit(remote, top) else target, top), top)
    for name in _DEFAULT_BRANCHES:
        commit = _commit(name, top)
        if commit is not None:
            return _merge_base(Base(name, commit), top)
    return None


def _known(ref: str, top: Path) -> Base:
    commit = _commit(ref, top)
    if commit is None:
        raise UnavailableError(
            f"the git ref {ref!r} is not in this clone",
            hint=f"fetch it: git fetch origin {ref.removeprefix('origin/')}; in CI check out with fetch-depth: 0",
            code="unknown_git_ref",
        )
    return Base(ref, commit)


def _merge_base(branch: Base, top: Path) -> Base:
    found = _git(top, "merge-base", "HEAD", branch.commit)
    return Base(branch.ref, found.decode().strip()) if found else branch


def _commit(ref: str, top: Path) -> str | None:
    found = _git(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    return found.decode().strip() if found else None


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What a git command prints; None where it fails."""
    done = _run(folder, *arguments)
    return done.stdout if done.returncode == 0 else None


def _complaint(folder: Path) -> str:
    lines = _run(folder, "rev-parse", "--show-toplevel").stderr.decode(errors="replace").strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else "git gives no reason"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
            env=environment,
        )
    except FileNotFoundError:
        raise UnavailableError("git is not installed", hint="leave --base out", code="no_git") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"git did not answer within {_TIMEOUT_S} seconds", code="no_git") from None
