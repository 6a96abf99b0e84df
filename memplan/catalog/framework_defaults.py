"""Defaults of frameworks by version, from `memplan/catalog/framework_defaults.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from memplan.errors import InputError, InvalidValueError, UnknownNameError


@dataclass(frozen=True, slots=True)
class FrameworkDefault:
    """One default of one framework.

    Attributes:
        value: what applies where a config says nothing.
        versions: the versions that have it, e.g. `>=1.0,<2`.
        source: file and line, or page.
        date: when it was read there.
    """

    framework: str
    key: str
    value: Any
    versions: str
    source: str
    date: str


@cache
def _tables() -> Mapping[str, Any]:
    return tomllib.loads(files("memplan.catalog").joinpath("framework_defaults.toml").read_text(encoding="utf-8"))


@cache
def list_defaults() -> tuple[FrameworkDefault, ...]:
    """Every row of the table."""
    return tuple(FrameworkDefault(**row) for row in _tables()["default"])


@cache
def _by_key() -> Mapping[tuple[str, str], tuple[FrameworkDefault, ...]]:
    found: dict[tuple[str, str], tuple[FrameworkDefault, ...]] = {}
    for row in list_defaults():
        found[row.framework, row.key] = (*found.get((row.framework, row.key), ()), row)
    return found


def reference_version(framework: str) -> str:
    """The version that is assumed where none is said.

    Raises:
        UnknownNameError: no such framework.
    """
    versions: dict[str, str] = _tables()["reference_version"]
    if framework not in versions:
        raise UnknownNameError("framework", framework, versions)
    return versions[framework]


def framework_default(framework: str, key: str, version: str | None = None) -> FrameworkDefault:
    """The default of `key` in a version of a framework; by default in its reference version.

    Raises:
        InvalidValueError: `version` is none.
        InputError: the table does not go back to that version.
    """
    version = version or reference_version(framework)
    for row in _by_key()[framework, key]:
        if in_range(version, row.versions):
            return row
    raise InputError(
        f"the default of {key} in {framework} {version} is not known",
        hint=f"set {key} in the file; known are {', '.join(row.versions for row in _by_key()[framework, key])}",
    )


def in_range(version: str, versions: str) -> bool:
    """Whether a version is within a range such as `>=0.20,<1.0`.

    Raises:
        InvalidValueError: `version` does not begin with a number.
    """
    mine = _numbers(version)
    for bound in versions.split(","):
        sign, limit = re.fullmatch(r"\s*(>=|<=|<|>|==)\s*(\S+)\s*", bound).groups()  # type: ignore[union-attr]
        theirs = _numbers(limit)
        held = {
            ">=": mine >= theirs, "<=": mine <= theirs, "<": mine < theirs, ">": mine > theirs, "==": mine == theirs
        }  # fmt: skip
        if not held[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, int, int]:
    match = re.match(r"v?(\d{1,6})(?:\.(\d{1,6}))?(?:\.(\d{1,6}))?", version)
    if match is None:
        raise InvalidValueError("version", version, "a version such as 1.16.0")
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major, minor, patch
