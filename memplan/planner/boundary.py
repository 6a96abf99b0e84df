"""The inverse questions: the largest batch, sequence, rank or model that fits.

A quantity is bracketed by its exact live peak, then bisected on full estimates. The answer is verified where it stands: it
fits, and the next larger value does not, both by their own full estimates.

Known limits:
    What the allocator reserves need not grow with every single step of a quantity: above a value that does not fit there may
    be single ones that do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.cards import card_ids, load_card
from memplan.errors import InputError, InvalidValueError, UnknownNameError, UnsupportedError
from memplan.estimate import Fits, VerdictReport
from memplan.families.positions import max_positions
from memplan.planner.changes import rank_of
from memplan.planner.result import Boundary, Quantity
from memplan.planner.scoring import Scorer, Structure
from memplan.planner.training_changes import setting_peft
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve

QUANTITIES: tuple[Quantity, ...] = ("batch", "sequence", "rank", "model")
# The bounds of the recipe's own keys.
MOST_BATCH, MOST_SEQUENCE, MOST_RANK = 65_536, 16_777_216, 16_384


@dataclass(frozen=True, slots=True)
class Scale:
    """One quantity as numbers.

    Attributes:
        key: the recipe key that it sets.
        most: the largest value that is allowed.
        limit: what sets `most`, in words.
        keys: the recipe keys that a value means.
        screen: the best verdict that a value can have; None where only a full estimate says.
    """

    key: str
    most: int
    limit: str
    keys: Callable[[int], Mapping[str, Any]]
    screen: Callable[[int], Fits] | None


def largest(recipe: Recipe, quantity: Quantity, scorer: Scorer) -> Boundary:
    """How far one quantity of a recipe can go within the scorer's limit, everything else as it is.

    Raises:
        UnknownNameError: no such quantity.
        InvalidValueError: the recipe has no rank.
        InputError, UnsupportedError: as `memplan.estimate`.
    """
    if quantity not in QUANTITIES:
        raise UnknownNameError("quantity", str(quantity), QUANTITIES)
    if quantity == "model":
        return _largest_model(recipe, scorer)
    scale = _scale(recipe, quantity, scorer)
    verdicts: dict[int, VerdictReport] = {}

    def verdict(value: int) -> VerdictReport:
        if value not in verdicts:
            estimate = scorer.judge(recipe.replace(**scale.keys(value)))
            verdicts[value] = scorer.limit.verdict(estimate)
        return verdicts[value]

    refused: dict[int, str] = {}

    def fits(value: int) -> bool:
        try:
            return verdict(value).fits is Fits.FITS
        except InvalidValueError as error:
            if value == 1:  # wrong whatever the value
                raise
            refused[value] = error.message
            return False

    # Some loops cannot run texts of one token; the next length says whether anything is covered.
    first = 2 if quantity == "sequence" and scorer.judge(recipe.replace(**scale.keys(1))).unsupported else 1
    top = scale.most
    if scale.screen is not None:
        screen = scale.screen
        top = max(_last(lambda value: screen(value) is Fits.FITS, scale.most, first), first)
    if not fits(first):
        missing = scorer.judge(recipe.replace(**scale.keys(first))).unsupported
        note = f"nothing is known to fit: {missing[0]} is not covered" if missing else f"not even {first} fits"
        return Boundary(quantity=quantity, key=scale.key, value=None, verdict=verdict(first), note=note)
    value = _last(fits, top, first)
    while value < scale.most and fits(value + 1):  # bisection stops at some boundary; a fitting neighbour moves it up
        value += 1
    if value == scale.most or value + 1 in refused:
        note = f"the largest that is allowed: {refused.get(value + 1, scale.limit)}"
        return Boundary(quantity=quantity, key=scale.key, value=value, verdict=verdict(value), note=note)
    return Boundary(
        quantity=quantity,
        key=scale.key,
        value=value,
        verdict=verdict(value),
        next_value=value + 1,
        next_verdict=verdict(value + 1),
        note=_beyond_context(recipe, value) if quantity == "sequence" else "",
    )


def _beyond_context(recipe: Recipe, length: int) -> str:
    """A word on sequences that fit the memory but not what the model was made for; rotary positions go on."""
    config = resolve(recipe).model.config
    context = (config.get("text_config") or config).get("max_position_embeddings")
    beyond = isinstance(context, int) and length > context
    return f"longer than the model's context of {context} tokens" if beyond else ""


def _last(holds: Callable[[int], bool], most: int, first: int = 1) -> int:
    """The last of `first`, ..., `most` up to which `holds` holds, 0 where it does not at once: by doubling, then halving."""
    if not holds(first):
        return 0
    low, high = first, 2 * first
    while high <= most and holds(high):
        low, high = high, 2 * high
    if high > most:
        if low == most or holds(most):
            return most
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _scale(recipe: Recipe, quantity: Quantity, scorer: Scorer) -> Scale:
    structure = scorer.structure(recipe)
    resolved = structure.resolved if structure is not None else resolve(recipe)
    batch, sequence = resolved["micro_batch_size"], resolved["sequence_length"]
    if quantity == "batch":
        return Scale(
            "micro_batch_size",
            MOST_BATCH,
            "a recipe's micro_batch_size",
            lambda value: {"micro_batch_size": value},
            _screen(structure, lambda found, value: found.best(value, sequence)),
        )
    if quantity == "sequence":
        most, limit = _longest(resolved)
        return Scale(
            "sequence_length",
            most,
            limit,
            lambda value: {"sequence_length": value},
            _screen(structure, lambda found, value: found.best(batch, value)),
        )
    if rank_of(resolved) is None:
        raise InvalidValueError(
            "largest", "rank", f"batch, sequence or model: method {resolved.method} has no one rank"
        )
    return Scale(
        "lora_r", MOST_RANK, "a recipe's lora_r", lambda value: setting_peft(resolved, "r", "lora_r", value), None
    )


def _screen(structure: Structure | None, best: Callable[[Structure, int], Fits]) -> Callable[[int], Fits] | None:
    if structure is None or structure.unsupported.texts:
        return None
    return lambda value: best(structure, value)


def _longest(resolved: Resolved) -> tuple[int, str]:
    positions = max_positions(resolved.model.config)
    if positions is None:
        return MOST_SEQUENCE, "a recipe's sequence_length"
    virtual = int(resolved.peft.get("num_virtual_tokens") or 0)
    return max(positions - virtual, 1), f"the model's {positions} positions"


def _largest_model(recipe: Recipe, scorer: Scorer) -> Boundary:
    """The card with the most parameters that fits; every larger one is judged or ruled out by what it must hold."""
    smallest_over: tuple[str, VerdictReport | None] | None = None
    refused = 0
    for card in sorted(map(load_card, card_ids()), key=lambda one: (-one.parameters, one.id)):
        candidate = recipe.replace(model=card.id)
        structure = scorer.structure(candidate) if _may_hold(candidate, card.parameters, scorer) else None
        if structure is None:
            refused += 1
            continue
        values = structure.resolved.values
        if structure.best(values["micro_batch_size"], values["sequence_length"]) is Fits.DOES_NOT_FIT:
            smallest_over = card.id, None
            continue
        try:
            verdict = scorer.limit.verdict(scorer.judge(candidate))
        except (InputError, UnsupportedError):
            refused += 1
            continue
        if verdict.fits is Fits.FITS:
            next_value, next_verdict = smallest_over or (None, None)
            if next_value is not None and next_verdict is None:
                next_verdict = scorer.limit.verdict(scorer.judge(recipe.replace(model=next_value)))
            return Boundary(
                quantity="model",
                key="model",
                value=card.id,
                verdict=verdict,
                next_value=next_value,
                next_verdict=next_verdict,
                note=f"of the {len(card_ids())} model cards, by parameters",
            )
        smallest_over = card.id, verdict
    return Boundary(quantity="model", key="model", value=None, verdict=None, note="none of the model cards fits")


def _may_hold(recipe: Recipe, parameters: int, scorer: Scorer) -> bool:
    """Whether the limit could hold the weights alone, at no less than they take as stored, and the recipe is legal."""
    try:
        resolved = resolve(recipe)
    except (InputError, UnsupportedError):
        return False
    if resolved.quantization is None:
        least = parameters * resolved.dtype.itemsize_bytes
    else:
        least = parameters // 2 if resolved.quantization.scheme.is_4bit_bitsandbytes else 0
    return scorer.limit.best_case(least) is not Fits.DOES_NOT_FIT
