"""The versions of the libraries that a trace runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """Names and versions, for the head of a generated page."""
    found = []
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
