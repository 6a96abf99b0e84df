"""The inverse questions: what fits at most, held to a scan of every value."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.cards import card_ids, load_card
from memplan.errors import InputError, InvalidValueError, MemplanError, UnknownNameError
from memplan.estimate import Fits
from memplan.planner import largest
from memplan.planner.boundary import _last
from memplan.planner.limit import limit_of
from memplan.recipe import Recipe
from memplan.units import GIB
from tests.planner.small import FULL, LORA, WIDE, budget


def verdict(keys: dict[str, Any], gib: float) -> Fits:
    return limit_of(None, budget(gib)).verdict(memplan.estimate(**keys)).fits


@pytest.mark.parametrize("gib", [4.0, 4.2, 6.0])
def test_the_largest_batch_is_the_last_of_a_scan(gib: float) -> None:
    found = largest(Recipe(**FULL), "batch", budget_bytes=budget(gib))
    fits = [batch for batch in range(1, 40) if verdict({**FULL, "micro_batch_size": batch}, gib) is Fits.FITS]
    assert fits == list(range(1, len(fits) + 1))
    assert found.value == len(fits)
    assert found.next_value == len(fits) + 1
    assert found.verdict is not None
    assert found.next_verdict is not None
    assert found.verdict.fits is Fits.FITS
    assert found.next_verdict.fits is not Fits.FITS
    assert found.next_verdict.fits is verdict({**FULL, "micro_batch_size": len(fits) + 1}, gib)


@pytest.mark.parametrize("gib", [3.6, 5.0])
def test_the_largest_sequence_is_a_boundary(gib: float) -> None:
    keys = {**FULL, "micro_batch_size": 2}
    found = largest(Recipe(**keys), "sequence", budget_bytes=budget(gib))
    assert isinstance(found.value, int)
    assert found.next_value == found.value + 1
    assert verdict({**keys, "sequence_length": found.value}, gib) is Fits.FITS
    assert verdict({**keys, "sequence_length": found.value + 1}, gib) is not Fits.FITS


@pytest.mark.parametrize("said", [{"lora_r": 8}, {"peft": {"r": 8}}])
def test_the_largest_rank_is_a_boundary(said: dict[str, Any]) -> None:
    rest = {key: value for key, value in LORA.items() if key != "lora_r"}
    keys = {**rest, **said, "micro_batch_size": 1, "sequence_length": 256}
    found = largest(Recipe(**keys), "rank", budget_bytes=budget(3.2))
    assert isinstance(found.value, int)
    assert found.value > 8
    alone = {**rest, "micro_batch_size": 1, "sequence_length": 256}
    assert verdict({**alone, "lora_r": found.value}, 3.2) is Fits.FITS
    assert verdict({**alone, "lora_r": found.value + 1}, 3.2) is not Fits.FITS


def test_the_end_of_what_is_allowed_is_said() -> None:
    tiny = {**WIDE, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 64}
    found = largest(Recipe(model=tiny, sequence_length=1), "batch", budget_bytes=60 * GIB)
    assert found.value == 65_536
    assert found.next_value is None
    assert "micro_batch_size" in found.note


def test_a_rank_ends_where_its_matrices_do() -> None:
    found = largest(Recipe(**{**LORA, "micro_batch_size": 1, "sequence_length": 64}), "rank", budget_bytes=60 * GIB)
    assert isinstance(found.value, int)
    assert found.next_value is None
    assert "largest that is allowed" in found.note
    with pytest.raises(InvalidValueError):
        memplan.estimate(**{**LORA, "lora_r": found.value + 1})


def test_a_sequence_beyond_the_context_is_said() -> None:
    one = {**FULL, "micro_batch_size": 1}
    assert "context of 4096" in largest(Recipe(**one), "sequence", budget_bytes=60 * GIB).note
    assert largest(Recipe(**one), "sequence", budget_bytes=budget(4.2)).note == ""


def test_nothing_fits() -> None:
    found = largest(Recipe(**FULL), "batch", budget_bytes=budget(2.5))
    assert found.value is None
    assert found.verdict is not None
    assert found.verdict.fits is not Fits.FITS
    assert found.note == "not even 1 fits"


def test_what_is_not_covered_is_never_called_fitting() -> None:
    found = largest(Recipe(**FULL, stack="unsloth"), "batch", gpu="b200")
    if memplan.estimate(**FULL, stack="unsloth").unsupported:
        assert found.value is None
        assert "not covered" in found.note


def test_the_biggest_model_is_bigger_than_all_that_fit() -> None:
    keys = {"method": "lora", "target_modules": "all-linear", "sequence_length": 512}
    found = largest(Recipe(model="gpt2", **keys), "model", gpu="t4")
    assert isinstance(found.value, str)
    parameters = load_card(found.value).parameters
    smaller = 0
    for card_id in card_ids():
        card = load_card(card_id)
        if card.parameters < parameters:
            smaller += 1
            continue
        if card.parameters * 2 > 16 * GIB:
            continue  # 16-bit weights alone are more than a T4 has
        try:
            estimate = memplan.estimate(Recipe(model=card_id, gpu="t4", **keys))
        except MemplanError:
            continue
        fits = estimate.verdict().fits is Fits.FITS
        assert fits == (card_id == found.value), card_id
    assert smaller > 10


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100])
def test_bisection_finds_every_boundary(most: int) -> None:
    for last in range(most + 1):
        asked: list[int] = []

        def holds(value: int, last: int = last, asked: list[int] = asked) -> bool:
            asked.append(value)
            return value <= last

        assert _last(holds, most) == last
        assert max(asked) <= most
        assert len(asked) <= 2 * most.bit_length() + 2


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(UnknownNameError, match="batch"):
        largest(Recipe(**FULL), "bach", gpu="t4")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="no one rank"):
        largest(Recipe(**FULL), "rank", gpu="t4")
    with pytest.raises(InputError, match="limit"):
        largest(Recipe(**FULL), "batch")
