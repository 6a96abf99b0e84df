"""What would make a recipe fit, or what else would fit. Runs in a computing process.

Every proposal is one of the planner's, estimated in full; only those whose upper bound fits are offered as fitting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.estimate import Fits
from memplan.planner import Plan, Proposal, Tier, plan
from memplan.recipe import Recipe
from memplan.web.pages.elsewhere import Place, every_gpu
from memplan.web.pages.rendering import render
from memplan.web.recipes import recipe_of

_SHOWN = 6
TIERS = {
    Tier.SAME_RESULT: "same result",
    Tier.SLOWER: "slower, same result",
    Tier.DIFFERENT_TRAINING: "another training run",
    Tier.HARDWARE: "other hardware",
}


@dataclass(frozen=True)
class Changes:
    """The section of changes.

    Attributes:
        best: changes that make it fit, mildest first; where it fits already, what leaves more room.
        uncertain: changes that might.
        gpus: the smallest GPUs on which it fits unchanged.
    """

    plan: Plan
    best: tuple[Proposal, ...]
    uncertain: tuple[Proposal, ...]
    gpus: tuple[Place, ...]

    @property
    def fits_already(self) -> bool:
        """Whether nothing has to change."""
        return self.plan.current.fits is Fits.FITS


def changes_of(recipe: Recipe) -> Changes:
    """The planner's proposals for a recipe with a GPU."""
    found = plan(recipe)
    fitting = [proposal for proposal in found.singles if proposal.fits is Fits.FITS and (proposal.saves_bytes or 0) > 0]
    picked = {proposal.title: proposal for proposal in (found.smallest, found.cheapest) if proposal is not None}
    for proposal in sorted(fitting, key=lambda entry: (entry.tier, -(entry.saves_bytes or 0))):
        picked.setdefault(proposal.title, proposal)
    best = sorted(list(picked.values())[:_SHOWN], key=lambda entry: (entry.tier, len(entry.changes)))
    places = [place for place in every_gpu(recipe) if place.verdict and place.verdict.fits is Fits.FITS]
    places.sort(key=lambda place: place.gpu.usable_bytes)
    others = tuple(place for place in places if not place.is_current)
    return Changes(found, tuple(best), found.uncertain[:_SHOWN], others[:3])


def changes_html(keys: Mapping[str, Any], root: str) -> str:
    """The section of changes; empty where no GPU is named.

    Raises:
        MemplanError: as `memplan.plan`.
    """
    recipe = recipe_of(keys)
    if recipe.gpu is None:
        return ""
    return str(render("changes.html", changes=changes_of(recipe), tiers=TIERS, root=root))
