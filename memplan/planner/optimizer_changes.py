"""Other forms of an optimizer: fused, paged, with 8-bit states, factored.

Which names belong together is `memplan/catalog/optimizer_changes.toml`; what each costs is read off the estimate.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from memplan.methods import get_method
from memplan.planner import pain
from memplan.planner.result import Change, Tier
from memplan.resolve import Resolved


@dataclass(frozen=True, slots=True)
class Form:
    """One form that optimizers of a family can take.

    Attributes:
        optim: its name.
        replaces: names that it can stand for.
        tier: what the exchange costs.
        is_another: whether it is another optimizer, and not another form of the same.
        title, note: for the user.
    """

    optim: str
    replaces: tuple[str, ...]
    tier: Tier
    title: str
    note: str
    is_another: bool = False


@lru_cache(maxsize=1)
def forms() -> tuple[Form, ...]:
    """Every row, in the order of the table."""
    text = files("memplan").joinpath("catalog", "optimizer_changes.toml").read_text(encoding="utf-8")
    return tuple(
        Form(
            optim=row["optim"],
            replaces=tuple(row["replaces"]),
            tier=Tier(row["tier"]),
            title=row["title"],
            note=row.get("note", ""),
            is_another=row.get("another", False),
        )
        for row in tomllib.loads(text)["form"]
    )


def optimizer_changes(base: Resolved) -> Iterator[Change]:
    """The other forms of the recipe's optimizer; none where options of its own are given."""
    if base.values.get("optim_args"):
        return
    # torch keeps states in the parameters' own type, bitsandbytes' 32-bit forms in float32.
    widens = base.dtype.is_half and get_method(base.method).peft_type is None
    for strength, form in enumerate(form for form in forms() if base["optim"] in form.replaces):
        tier = Tier.DIFFERENT_TRAINING if widens and form.tier is Tier.SLOWER else form.tier
        moves = pain.ANOTHER_OPTIMIZER if form.is_another else pain.EIGHT_BIT_STATES
        yield Change(
            id=form.optim.replace("_", "-"),
            knob="optimizer",
            tier=tier,
            title=form.title,
            sets={"optim": form.optim},
            strength=strength,
            pain=moves if tier is Tier.DIFFERENT_TRAINING else pain.NONE,
            note=form.note,
        )
