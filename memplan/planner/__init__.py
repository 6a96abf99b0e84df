"""What makes a recipe fit: legal changes ranked by what they cost the user, each with its own full estimate.

    plan(recipe, gpu="rtx-4090")                     what to change
    largest(recipe, "batch", gpu="rtx-4090")         how far one quantity can go
    gpus_for(recipe, prices={"rtx-4090": 0.35})      on which GPUs the recipe fits as it is
    longest_sample(recipe, lengths, gpu="rtx-4090")  the peak of the longest batch

`fits` always means that the upper bound of a full estimate fits. What is uncertain or not covered is listed apart.
"""

from __future__ import annotations

from memplan.planner.hardware import gpus_for
from memplan.planner.planning import largest, longest_sample, plan
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
    "gpus_for",
    "largest",
    "longest_sample",
    "plan",
]
