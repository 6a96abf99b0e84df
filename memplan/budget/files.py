"""Where the files that a budget names are read from: a folder, texts in memory, or a commit (`memplan.budget.git`).

Paths in a budget file are relative to its own folder and have slashes on every system.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from memplan.documents import read_text
from memplan.errors import UnavailableError


class Files(Protocol):
    """A tree of text files."""

    def read(self, path: str) -> str:
        """The text of a file.

        Raises:
            UnavailableError: there is no such file.
            FileFormatError: too large, or not UTF-8.
        """

    def has(self, path: str) -> bool:
        """Whether there is such a file."""


class FolderFiles:
    """Files below a folder, or anywhere by an absolute path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, path: str) -> str:
        """See `Files.read`."""
        if not self.has(path):
            raise no_such_file(path)
        return read_text(self.folder / path)

    def has(self, path: str) -> bool:
        """See `Files.has`."""
        try:
            return (self.folder / path).is_file()
        except (OSError, ValueError):  # longer than a name may be, or a zero byte
            return False


class TextFiles:
    """Files that somebody sent along; nothing is read from a disk."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = {str(PurePosixPath(path)): text for path, text in texts.items()}

    def read(self, path: str) -> str:
        """See `Files.read`."""
        if not self.has(path):
            raise no_such_file(path)
        return self.texts[str(PurePosixPath(path))]

    def has(self, path: str) -> bool:
        """See `Files.has`."""
        return str(PurePosixPath(path)) in self.texts


def no_such_file(path: str, where: str = "") -> UnavailableError:
    """The error of a file that is not there."""
    hint = "paths are relative to the folder of the budget file; those of a command line to the working folder"
    return UnavailableError(f"no such file: {path}{where}", hint=hint, code="no_such_file")
