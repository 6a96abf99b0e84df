"""The library versions that a trace was tested with; others are refused, because what it patches may have moved."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from memplan.errors import UnavailableError

# package -> (first tested release, first release beyond). The same ranges as the extra `trace` in pyproject.toml, and
# an upper end for torch: the shim's interface is c10/core/impl/DeviceGuardImplInterface.h.
TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.11", "2.15"),
    "transformers": ("5.17", "5.24"),
    "peft": ("0.20", "0.22"),
}
TESTED_IF_USED: dict[str, tuple[str, str]] = {"bitsandbytes": ("0.50", "0.51")}


def check(*, bitsandbytes: bool) -> None:
    """Refuses versions outside the tested ranges.

    Raises:
        UnavailableError: a package is missing, or its version is outside the range, which is named.
    """
    for package, (low, high) in {**TESTED, **(TESTED_IF_USED if bitsandbytes else {})}.items():
        check_package(package, low, high, extra="memplan[trace]")


def check_package(package: str, low: str, high: str, *, extra: str) -> None:
    """Refuses a version of `package` outside of [low, high); `extra` is what pip installs.

    Raises:
        UnavailableError: it is missing, or its version is outside the range, which is named.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UnavailableError(
            f"memplan trace needs {package}", hint=f'pip install "{extra}"', code="no_" + package
        ) from None
    if not _release(low) <= _release(found) < _release(high):
        raise UnavailableError(
            f"memplan trace is tested with {package} >= {low}, < {high}; {found} is installed",
            hint=f'pip install "{package}>={low},<{high}"',
            code="untested_version",
        )


def installed(packages: Iterable[str] = (*TESTED, *TESTED_IF_USED)) -> dict[str, str]:
    """The version of each of `packages` that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def installed_versions() -> str:
    """Names and versions of what a trace runs, for the head of a generated page."""
    return ", ".join(f"{package} {found}" for package, found in installed().items())


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)
