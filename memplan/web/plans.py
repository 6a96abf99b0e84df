"""The question of `POST /plan`: a recipe's flat keys, and beside them what the planner is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.planner import Plan, Quantity, Tier, plan
from memplan.planner.planning import DEFAULT_MAX_CHANGES, MOST_CHANGES
from memplan.recipe import Recipe
from memplan.web.recipes import recipe_of

_MAX_NAMES = 100
_MAX_LENGTHS = 5_000
_MAX_PRICE = 1e9

Names = Annotated[list[str], Field(max_length=_MAX_NAMES)]
Length = Annotated[int, Field(ge=1, le=16_777_216)]
LengthText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,7}$")]
Count = Annotated[int, Field(ge=1, le=10**12)]


class PlanOptions(BaseModel):
    """What the planner is told besides the recipe; the names of `memplan.plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    budget_bytes: Annotated[
        int | None,
        Field(ge=1, le=2**50, description="Device memory that the run may take; with `gpu`, of that GPU."),
    ] = None
    keep: Annotated[Names, Field(description="Recipe keys that stay as they are.")] = []
    allow: Annotated[Names | None, Field(description="The only recipe keys that may change.")] = None
    highest_tier: Annotated[
        int, Field(ge=1, le=4, description="1 same result, 2 slower, 3 other training, 4 other GPU.")
    ] = int(Tier.HARDWARE)
    max_changes: Annotated[int, Field(ge=1, le=MOST_CHANGES, description="In one combination.")] = DEFAULT_MAX_CHANGES
    largest: Annotated[
        list[Quantity], Field(max_length=4, description="Quantities whose largest fitting value is asked for.")
    ] = []
    prices: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=_MAX_PRICE, allow_inf_nan=False)]] | None,
        Field(max_length=_MAX_NAMES, description="What GPUs cost, in any unit."),
    ] = None
    lengths: Annotated[
        Annotated[list[Length], Field(min_length=1, max_length=_MAX_LENGTHS)]
        | Annotated[dict[LengthText, Count], Field(min_length=1, max_length=_MAX_LENGTHS)]
        | None,
        Field(description="Of the samples in tokens, or how many samples there are of each length."),
    ] = None


def plan_of(keys: Mapping[str, Any]) -> Plan:
    """The plan that a client asked for.

    Args:
        keys: recipe keys and planner options with plain values.

    Raises:
        InputError, UnsupportedError: as `memplan.planner.plan`; and what `recipe_of` refuses.
    """
    known = PlanOptions.model_fields
    given = {key: value for key, value in keys.items() if key in known and value is not None}
    rest = {key: value for key, value in keys.items() if key not in known}
    for key in rest:
        if key not in Recipe.model_fields and key != "gradient_checkpointing":
            raise UnknownNameError("recipe key", key, [*Recipe.model_fields, *known], show=0)
    options = _options(given)
    recipe = recipe_of(rest)
    if recipe.gpu is None and options.budget_bytes is None:
        raise InputError("gpu is missing", hint="a plan needs a gpu, or budget_bytes")
    told = {key: getattr(options, key) for key in known}
    if isinstance(options.lengths, dict):
        told["lengths"] = {int(length): count for length, count in options.lengths.items()}
    return plan(recipe, **told)


def _options(given: Mapping[str, Any]) -> PlanOptions:
    try:
        return PlanOptions(**given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        key = str(found[0]["loc"][0])
        # A key of several types has an error for each of them.
        messages = dict.fromkeys(str(one["msg"]) for one in found if one["loc"][0] == key)
        text = ", or ".join(message[:1].lower() + message[1:] for message in messages)
        raise InvalidValueError(key, given[key], text) from None
