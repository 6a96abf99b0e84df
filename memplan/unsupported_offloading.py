"""Which offloading of activations is walked, for which runs: those that are equal to the trace of the code that does it."""

from __future__ import annotations

from memplan.recipe import Stack
from memplan.resolve import Resolved


def unsupported_offloading(resolved: Resolved) -> list[str]:
    """What keeps the recipe's offloading from being walked."""
    variant = resolved.values.get("activation_offloading")
    if resolved.values["stack"] is Stack.UNSLOTH:
        return []  # its own (`unsupported_unsloth`)
    return [f"activations offloaded to the CPU (activation_offloading={variant})"] if variant else []
