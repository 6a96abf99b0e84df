"""A recipe's values as they become known, each with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The source of what the user said.
USER = "user"


class Filler:
    """Collects values with their sources; a key that the user gave keeps its value.

    Args:
        said: the user's keys.
        own: defaults of the run's framework with their sources, in the place of those that `fill` is given.
    """

    def __init__(self, said: Mapping[str, Any], own: Mapping[str, tuple[Any, str]] | None = None) -> None:
        self.said = said
        self.own = own or {}
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def fill(self, key: str, default: Any, source: str) -> Any:
        """The key's value, now recorded with where it comes from."""
        if key in self.said:
            self.values[key], self.sources[key] = self.said[key], USER
        elif key in self.own:
            self.values[key], self.sources[key] = self.own[key]
        else:
            self.values[key], self.sources[key] = default, source
        return self.values[key]
