"""What would make a recipe fit, or what else would fit. Runs in a computing process.

Every proposal is one of the planner's, estimated in full; only those whose upper bound fits are offered as fitting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.engine import estimate as analytic
from memplan.errors import MemplanError
from memplan.estimate import Estimate, Fits
from memplan.planner import Boundary, Plan, Proposal, Quantity, Tier, plan
from memplan.recipe import Recipe
from memplan.web.pages.elsewhere import Place, every_gpu
from memplan.web.pages.rendering import render
from memplan.web.recipes import recipe_of

_SHOWN = 6
# Where a recipe fits already, a change that saves less is not worth a line.
_WORTH_SAYING = 0.02
TIERS = {
    Tier.SAME_RESULT: "same result",
    Tier.SLOWER: "slower, same result",
    Tier.DIFFERENT_TRAINING: "another training run",
    Tier.HARDWARE: "other hardware",
}
# What costs milliseconds to search, and what people ask for: each rank is another adapter to describe, each model a walk.
_ASKED: tuple[Quantity, ...] = ("batch", "sequence")
_WORDS = {"batch": "micro-batches of {:,}", "sequence": "sequences of {:,} tokens"}


@dataclass(frozen=True)
class Room:
    """How far one quantity can go.

    Attributes:
        keys: recipe keys that lead there.
    """

    boundary: Boundary
    text: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Changes:
    """The section of changes.

    Attributes:
        best: changes that make it fit, least painful first; where it fits already, what leaves more room.
        uncertain: changes that might.
        room: where it fits already, how far quantities can go.
        gpus: the smallest GPUs on which it fits unchanged.
    """

    plan: Plan
    best: tuple[Proposal, ...]
    uncertain: tuple[Proposal, ...]
    room: tuple[Room, ...]
    gpus: tuple[Place, ...]

    @property
    def fits_already(self) -> bool:
        """Whether nothing has to change."""
        return self.plan.current.fits is Fits.FITS

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What keeps the recipe itself from ever being said to fit."""
        return self.plan.current.unsupported


def changes_of(recipe: Recipe) -> Changes:
    """The planner's proposals for a recipe with a GPU."""
    current = analytic(recipe)
    fits_already = current.verdict().fits is Fits.FITS
    found = plan(recipe, largest=_ASKED if fits_already else ())
    least = int(_WORTH_SAYING * found.current.peak.device_bytes) if fits_already else 0
    fitting = [entry for entry in found.singles if entry.fits is Fits.FITS and (entry.saves_bytes or 0) > least]
    picked = {proposal.title: proposal for proposal in (found.cheapest, found.smallest) if proposal is not None}
    for proposal in sorted(fitting, key=lambda entry: (entry.tier, entry.pain, -(entry.saves_bytes or 0))):
        picked.setdefault(proposal.title, proposal)
    best = sorted(list(picked.values())[:_SHOWN], key=lambda entry: (entry.tier, entry.pain, len(entry.changes)))
    places = [place for place in every_gpu(recipe) if place.verdict and place.verdict.fits is Fits.FITS]
    places.sort(key=lambda place: place.gpu.usable_bytes)
    others = tuple(place for place in places if not place.is_current)
    room = tuple(
        entry for entry in (_room(recipe, current, boundary) for boundary in found.largest) if entry is not None
    )
    return Changes(found, tuple(best), found.uncertain[:_SHOWN], room, others[:3])


def _room(recipe: Recipe, current: Estimate, boundary: Boundary) -> Room | None:
    """The boundary as a recipe; None where it is the recipe as given, whose estimate is `current`."""
    if boundary.value is None:
        return None
    keys = {**recipe.said(), boundary.key: boundary.value}
    try:
        answer = analytic(recipe_of(keys))
    except MemplanError:
        return None
    if answer.recipe == current.recipe or answer.verdict().fits is not Fits.FITS:
        return None
    return Room(boundary, _WORDS[boundary.quantity].format(boundary.value), keys)


def changes_html(keys: Mapping[str, Any], root: str) -> str:
    """The section of changes; empty where no GPU is named.

    Raises:
        MemplanError: as `memplan.plan`.
    """
    recipe = recipe_of(keys)
    if recipe.gpu is None:
        return ""
    return str(render("changes.html", changes=changes_of(recipe), tiers=TIERS, root=root))
