"""Every error memplan raises on purpose.

    MemplanError                    code, message, hint; exit_code for the CLI
    ├── InputError (ValueError)     the user's input is wrong                     exit 2
    │   ├── UnknownNameError        a name outside a closed set ("did you mean")
    │   ├── InvalidValueError       a known key with a value it cannot have
    │   └── FileFormatError         a file that cannot be parsed
    ├── UnsupportedError            valid input that memplan has no rule for      exit 3
    └── UnavailableError            something needed could not be reached         exit 4

`assert` is kept for memplan's own invariants; none of these is raised for a bug in memplan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class MemplanError(Exception):
    """Base of every deliberate error.

    Attributes:
        code: stable machine-readable code, snake_case (part of the public contract).
        message: what was found and what is wrong with it.
        hint: what is allowed, or what to do; may be empty.
    """

    exit_code = 2
    default_code = "error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        self.code = code or self.default_code
        self.message = message
        self.hint = hint
        super().__init__(f"{message}\n{hint}" if hint else message)


class InputError(MemplanError, ValueError):
    """The input is wrong; the user can mend it."""

    default_code = "invalid_input"


class UnknownNameError(InputError):
    """A name that is not in a closed set: says what is, and what was probably meant.

    Args:
        kind: what the name names, as a human says it ("model", "GPU", "optimizer").
        name: what was given.
        allowed: the closed set; at most `show` of them are listed.
    """

    default_code = "unknown_name"

    def __init__(self, kind: str, name: str, allowed: Iterable[str], *, hint: str = "", show: int = 40) -> None:
        self.kind = kind
        self.name = name
        self.allowed = sorted(set(allowed))
        self.suggestions = closest(name, self.allowed)
        parts = []
        if self.suggestions:
            parts.append("did you mean " + " or ".join(self.suggestions) + "?")
        if len(self.allowed) <= show:
            parts.append("allowed: " + ", ".join(self.allowed))
        if hint:
            parts.append(hint)
        slug = kind.lower().replace(" ", "_").replace("-", "_")
        super().__init__(f"unknown {kind} {_shown(name)}", hint="\n".join(parts), code=f"unknown_{slug}")


class InvalidValueError(InputError):
    """A key that exists with a value it cannot have.

    Args:
        key: the recipe or file key, as the user writes it.
        value: what was given.
        allowed: a phrase saying what may stand there.
    """

    default_code = "invalid_value"

    def __init__(self, key: str, value: object, allowed: str, *, hint: str = "") -> None:
        self.key = key
        self.value = value
        super().__init__(f"{key} = {_shown(value)} is not allowed: {allowed}", hint=hint)


class FileFormatError(InputError):
    """A file or document that cannot be parsed, with the place where parsing stopped."""

    default_code = "invalid_file"


class UnsupportedError(MemplanError):
    """Valid input for which memplan has no rule. Never answered by a guess."""

    exit_code = 3
    default_code = "unsupported"


class UnavailableError(MemplanError):
    """Something that the answer needs is missing here (an extra, a file, a device)."""

    exit_code = 4
    default_code = "unavailable"


def _shown(value: object) -> str:
    text = repr(value)
    if len(text) <= 120:
        return text
    return repr(value[:117] + "...") if isinstance(value, str) else text[:117] + "..."


# No name is longer, and comparing takes time that grows with the length.
_LONGEST_NAME = 100


def closest(name: str, allowed: Iterable[str], limit: int = 3) -> list[str]:
    """The entries of `allowed` that look most like `name`, best first, ignoring case.

    Whole names are compared first, then names that contain `name`, then the words of a name: `bacth` is near
    `micro_batch_size` by its second word alone.
    """
    if len(name) > _LONGEST_NAME:
        return []
    by_folded: dict[str, str] = {}
    for entry in allowed:
        by_folded.setdefault(entry.casefold(), entry)
    folded = name.casefold()
    hits = difflib.get_close_matches(folded, by_folded, n=limit, cutoff=0.6)
    if not hits:
        hits = [key for key in by_folded if folded and folded in key][:limit]
    if not hits:
        hits = _closest_by_word(folded, by_folded, limit)
    return [by_folded[hit] for hit in hits]


# Of one word against one word; higher than for whole names, because short words are alike by chance.
_WORD_CUTOFF = 0.75
_SHORTEST_WORD = 3


def _closest_by_word(folded: str, names: Iterable[str], limit: int) -> list[str]:
    """The names with a word most like a word of `folded`; among equals the shortest."""
    wanted = _words(folded)
    scored = []
    for name in names:
        matchers = (difflib.SequenceMatcher(None, mine, theirs) for mine in wanted for theirs in _words(name))
        score = max((matcher.ratio() for matcher in matchers), default=0.0)
        if score >= _WORD_CUTOFF:
            scored.append((-score, len(name), name))
    return [name for _, _, name in sorted(scored)[:limit]]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_]+", name) if len(word) >= _SHORTEST_WORD]
