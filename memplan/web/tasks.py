"""What the computing processes do; every function here runs in one (`Work.run`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.estimate import Estimate
from memplan.web.recipes import recipe_of


def estimate(keys: Mapping[str, Any]) -> Estimate:
    """The estimate of the recipe with these keys, receipt lines included.

    Raises:
        MemplanError: as `memplan.estimate`, and for a model given as a path.
    """
    from memplan.engine import estimate as analytic

    return analytic(recipe_of(keys))
