"""What a plan says: frozen shapes that Python, the command line, REST and the web page share.

Every size is an int of bytes. A `Proposal` is what a full estimate of its recipe said, never a difference of components.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from memplan.estimate import Fits, Peak, Provenance, VerdictReport

SCHEMA_VERSION = 1


class Tier(IntEnum):
    """What a change costs the user; a combination has the tier of its dearest change."""

    SAME_RESULT = 1  # the same numbers up to rounding, at about the same speed
    SLOWER = 2  # the same numbers, more time
    DIFFERENT_TRAINING = 3  # another training run
    HARDWARE = 4  # another GPU


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Model):
    """One thing that a user can do.

    Attributes:
        id: stable name, such as `activation-checkpointing` or `micro-batch-2`.
        knob: what is turned; a combination turns each knob at most once.
        title: what to do, in words.
        sets: recipe keys with their new values; None takes a key out.
        strength: place on the knob's ladder, 0 for the mildest.
        pain: how far it moves the training (`memplan.planner.pain`); 0 where it does not.
        note: what else the user should know; may be empty.
    """

    id: str
    knob: str
    tier: Tier
    title: str
    sets: dict[str, Any]
    strength: int = 0
    pain: int = 0
    note: str = ""


class Compute(_Model):
    """Floating-point operations of the step, as `torch.utils.flop_counter` counts them (matrix products and attention).

    Attributes:
        flops_per_step: of one optimizer step, every micro-batch of it.
        flops_per_token: of one trained position.
        ratio: flops_per_token over that of the recipe as it was given.
    """

    flops_per_step: int
    flops_per_token: float
    ratio: float


class Proposal(_Model):
    """A recipe that differs from the given one by some changes, with its own full estimate.

    Attributes:
        changes: in the order of their tiers; empty for the recipe as given.
        sets: recipe keys to set, all changes together.
        implies: other values of the complete recipe that become different by default, as {key: [before, after]}.
        recipe: the keys to say, ready for `Recipe(**recipe)`.
        peak: of the full estimate.
        saves_bytes: device bytes at the peak of the given recipe less those of this one: the marginal saving. None where
            either step is not covered.
        host_bytes: CPU memory that paged state needs.
        compute: None where the model has no rule for it.
        verdict: against the GPU or the budget.
        unsupported: what no rule covers; then it never counts as fitting.
    """

    changes: tuple[Change, ...]
    tier: Tier
    sets: dict[str, Any]
    implies: dict[str, tuple[Any, Any]]
    recipe: dict[str, Any]
    peak: Peak
    saves_bytes: int | None
    host_bytes: int
    compute: Compute | None
    verdict: VerdictReport
    unsupported: tuple[str, ...] = ()

    @property
    def fits(self) -> Fits:
        """The verdict's word."""
        return self.verdict.fits

    @property
    def pain(self) -> int:
        """How far all changes together move the training."""
        return sum(change.pain for change in self.changes)

    @property
    def title(self) -> str:
        """All changes in one phrase."""
        return " + ".join(change.title for change in self.changes) or "the recipe as given"

    @model_validator(mode="after")
    def _check_invariants(self) -> Proposal:
        assert not (self.unsupported and self.fits is Fits.FITS), "what is not covered cannot fit"
        return self


class GpuOption(_Model):
    """The given recipe on another GPU.

    Attributes:
        price: what the user said it costs, in the user's unit; None where no price was given.
    """

    gpu: str
    name: str
    usable_bytes: int
    verdict: VerdictReport
    price: float | None = None


Quantity = Literal["batch", "sequence", "rank", "model"]


class Boundary(_Model):
    """The largest value of one quantity that fits, verified by full estimates of it and of the next one.

    Attributes:
        quantity: what was asked for.
        key: the recipe key that it sets.
        value: the largest that fits; None where not even the smallest does.
        verdict: of `value`, or of the smallest where none fits.
        next_value: the one above, which does not fit; None where `value` is the end of what is allowed.
        next_verdict: of `next_value`.
        note: what bounds it, or how it was found.
    """

    quantity: Quantity
    key: str
    value: int | str | None
    verdict: VerdictReport | None
    next_value: int | str | None = None
    next_verdict: VerdictReport | None = None
    note: str = ""


class LengthReport(_Model):
    """The peak of the longest batch that data of given lengths can make.

    Attributes:
        samples: how many lengths there are.
        longest: the longest of them, as it is trained (cut at `sequence_length` where the recipe says one).
        truncated: how many samples are cut.
        padding: whether the batch holds padding, so that attention runs with a mask.
        peak: of a micro-batch of that length.
        fitting_length: the longest length that fits; None where none does.
        over: how many samples are longer than that.
    """

    samples: int
    longest: int
    truncated: int
    padding: bool
    peak: Peak
    verdict: VerdictReport
    fitting_length: int | None
    over: int


class Skipped(_Model):
    """A change that was left out of the search, and why."""

    knob: str
    reason: str


class Space(_Model):
    """What was searched.

    Attributes:
        changes: every single change considered, by knob.
        max_changes: how many changes a combination may have.
        combinations: how many combinations of two or more changes there are in the space.
        not_in_front: how many of them the front of memory against compute leaves out: those with a different training.
        judged: how many recipes got a full estimate.
        skipped: knobs without a legal change, and why.
    """

    changes: dict[str, tuple[str, ...]]
    max_changes: int
    combinations: int
    not_in_front: int = 0
    judged: int
    skipped: tuple[Skipped, ...] = ()


class Plan(_Model):
    """What makes a recipe fit.

    Attributes:
        gpu: the GPU's id, or None where only a budget was given.
        usable_bytes: the limit that verdicts are judged on.
        current: the recipe as given.
        singles: every knob's changes that matter, mildest first (see `Space`), each re-estimated.
        cheapest: the least painful that fits: the lowest tier; among those what moves the training least, then the fewest
            changes, then the least compute. None where nothing in the space fits.
        smallest: fewest changes that fit; among those the least painful. It can be far more painful than `cheapest`.
        uncertain: proposals that might fit; none of them is a solution.
        pareto: no other proposal needs less memory, less compute and a lower tier together, among the recipe as given, every
            combination that leaves the training as it is, and every single change (see `Space.not_in_front`).
        gpus: on which the recipe fits unchanged: the cheapest by the user's prices, and the smallest of those with more memory
            than the limit (of all, where the recipe fits as it is).
        largest: answers to the inverse questions that were asked.
        lengths: answer for the lengths that were given.
    """

    schema_version: int = SCHEMA_VERSION
    gpu: str | None
    usable_bytes: int
    recipe: dict[str, Any]
    recipe_sources: dict[str, str]
    current: Proposal
    singles: tuple[Proposal, ...]
    smallest: Proposal | None
    cheapest: Proposal | None
    uncertain: tuple[Proposal, ...] = ()
    pareto: tuple[Proposal, ...] = ()
    gpus: tuple[GpuOption, ...] = ()
    largest: tuple[Boundary, ...] = ()
    lengths: LengthReport | None = None
    space: Space
    assumptions: tuple[str, ...] = ()
    provenance: Provenance = Provenance.ANALYTIC

    @property
    def fits(self) -> Fits:
        """`fits` where the recipe or a proposal fits; else `uncertain` where something might."""
        if self.current.fits is Fits.FITS or self.smallest is not None:
            return Fits.FITS
        might = self.current.fits is Fits.UNCERTAIN or bool(self.uncertain)
        return Fits.UNCERTAIN if might else Fits.DOES_NOT_FIT

    def to_json(self, *, indent: int | None = 2) -> str:
        """The public JSON form."""
        return self.model_dump_json(indent=indent)
