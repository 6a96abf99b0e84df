"""What makes a recipe fit: legal changes ranked by what they cost the user, each with its own full estimate.

    plan(recipe, gpu="rtx-4090")       what to change

`fits` always means that the upper bound of a full estimate fits. What is uncertain or not covered is listed apart.
"""

from __future__ import annotations

from memplan.planner.planning import plan
from memplan.planner.result import (
    Boundary,
    Change,
    Compute,
    GpuOption,
    LengthReport,
    Plan,
    Proposal,
    Quantity,
    Space,
    Tier,
)

__all__ = [
    "Boundary",
    "Change",
    "Compute",
    "GpuOption",
    "LengthReport",
    "Plan",
    "Proposal",
    "Quantity",
    "Space",
    "Tier",
    "plan",
]
