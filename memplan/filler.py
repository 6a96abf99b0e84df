"""A recipe's values as they become known, each with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The source of what the user said.
USER = "user"


class Filler:
    """Collects values with their sources; a key that the user gave keeps its value."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = said
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def fill(self, key: str, default: Any, source: str) -> Any:
        """The key's value, now recorded with where it comes from."""
        if key in self.said:
            self.values[key], self.sources[key] = self.said[key], USER
        else:
            self.values[key], self.sources[key] = default, source
        return self.values[key]
