"""A table of a budget file: only known keys, values of the right kind, and the file and line of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.documents import Document
from memplan.errors import InputError, InvalidValueError, MemplanError, UnknownNameError


class Table:
    """A table whose keys are known to be allowed.

    Args:
        document: the file.
        path: where in it the table stands.
        data: what stands there.
        allowed: its keys.
        title: what messages call it.

    Raises:
        InputError: no table, or an unknown key, with "did you mean".
    """

    def __init__(
        self, document: Document, path: tuple[str | int, ...], data: Any, allowed: tuple[str, ...], title: str
    ) -> None:
        self.document = document
        self.path = path
        self.data: dict[str, Any] = data
        if not isinstance(data, dict):
            raise InputError(f"{self.place()}: {title} is a {type(data).__name__}, not a table")
        for key in data:
            if key not in allowed:
                unknown = UnknownNameError("key", str(key), allowed)
                raise InputError(
                    f"{self.place(str(key))}: {unknown.message} in {title}", hint=unknown.hint, code=unknown.code
                )

    def place(self, key: str = "") -> str:
        """`memplan.toml:12`; the path of the key where lines are not known."""
        path = (*self.path, key) if key else self.path
        line = self.document.line(path)
        if line:
            return f"{self.document.name}:{line}"
        shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        return f"{self.document.name}: {shown}" if shown else self.document.name

    def wrong(self, key: str, allowed: str, hint: str = "") -> InputError:
        """The error of a value that cannot stand there."""
        return self.at(key, InvalidValueError(key, self.data.get(key), allowed, hint=hint))

    def at(self, key: str, error: MemplanError) -> InputError:
        """An error with the place of its key."""
        return InputError(f"{self.place(key)}: {error.message}", hint=error.hint, code=error.code)

    def text(self, key: str, longest: int, *, lines: bool = False) -> str | None:
        """A text without control characters; None where the key is absent."""
        if key not in self.data:
            return None
        value = self.data[key]
        if not isinstance(value, str) or not value.strip() or len(value) > longest:
            raise self.wrong(key, f"a text of 1 to {longest} characters")
        parts = value.splitlines() if lines else [value]
        if not all(part.isprintable() for part in parts):
            raise self.wrong(key, "a text without control characters")
        return value.strip()

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """A table of recipe keys; None where the key is absent."""
        if key not in self.data:
            return None
        value = self.data[key]
        if not isinstance(value, dict):
            raise self.wrong(key, "a table of recipe keys")
        return value
