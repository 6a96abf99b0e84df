"""One recipe in the forms that people paste: address, command line, Python, JSON, YAML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from memplan.web.pages.keys import canonical, query_of

_WIDTH = 88


@dataclass(frozen=True, slots=True)
class Copy:
    """One form of the recipe.

    Attributes:
        name: on the tab.
        id: of the element that holds the text.
        text: to be copied.
    """

    name: str
    id: str
    text: str


def copies(keys: Mapping[str, Any]) -> tuple[Copy, ...]:
    """Every form of a recipe."""
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in canonical(keys).items()}
    return (
        Copy("Link", "copy-link", f"/?{query_of(keys)}"),
        Copy("CLI", "copy-cli", command_line(said)),
        Copy("Python", "copy-python", python(said)),
        Copy("JSON", "copy-json", json.dumps(said, indent=2, ensure_ascii=False)),
        Copy("YAML", "copy-yaml", yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()),
    )


def command_line(said: Mapping[str, Any]) -> str:
    """A command for a POSIX shell."""
    parts = ["memplan estimate", *(_option(key, value) for key, value in said.items())]
    one_line = " ".join(parts)
    return one_line if len(one_line) <= _WIDTH else " \\\n  ".join(parts)


def _option(key: str, value: Any) -> str:
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool) and key != "activation_checkpointing":
        return name if value else f"--no-{name[2:]}"
    if isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    # With an equals sign, a value that begins with a hyphen stays a value.
    return f"{name}={shlex.quote(text)}" if text.startswith("-") else f"{name} {shlex.quote(text)}"


def python(said: Mapping[str, Any]) -> str:
    """A Python script."""
    arguments = "".join(f"    {key}={value!r},\n" for key, value in said.items())
    return f"import memplan\n\nestimate = memplan.estimate(\n{arguments})\nprint(estimate.peak.device_bytes)"
