"""The report of a plan says what the plan says."""

from __future__ import annotations

from functools import cache

import pytest

from memplan.planner import Plan, plan
from memplan.report.plain import to_text
from memplan.report.plan import plan_report, settings_text
from memplan.report.tree import Bullets, Facts, Headline, Paragraph, Table
from memplan.units import GIB
from tests.planner.small import FULL, QLORA, budget


@cache
def small(gib: float) -> Plan:
    return plan(**FULL, budget_bytes=budget(gib), max_changes=2)


def titles(found: Plan) -> list[str]:
    return [block.title for block in plan_report(found).blocks if isinstance(block, Table | Facts | Bullets)]


@pytest.mark.parametrize(("gib", "word"), [(20.0, "Fits"), (7.0, "Uncertain"), (4.2, "Does not fit")])
def test_the_verdict_comes_first(gib: float, word: str) -> None:
    block = plan_report(small(gib)).blocks[0]
    assert isinstance(block, Headline)
    assert block.word == word


def test_the_solution_comes_second() -> None:
    found = small(4.2)
    block = plan_report(found).blocks[1]
    assert isinstance(block, Facts)
    assert found.cheapest is not None
    rows = dict(block.rows)
    assert rows["do"] == found.cheapest.title
    assert rows["set"] == "micro_batch_size = 1, gradient_accumulation_steps = 8"
    assert rows["then"].endswith("fits")


def test_nothing_found_is_said() -> None:
    block = plan_report(small(2.5)).blocks[1]
    assert isinstance(block, Paragraph)
    assert "Nothing that was searched fits" in block.text


def test_every_single_change_has_a_row_with_its_own_numbers() -> None:
    found = small(4.2)
    (table,) = [one for one in plan_report(found).blocks if isinstance(one, Table) and one.title.startswith("Single")]
    assert len(table.rows) == len(found.singles)
    for row, proposal in zip(table.rows, found.singles, strict=True):
        assert row[1] == proposal.title
        if proposal.saves_bytes is None:
            assert row[2] == row[3] == ""
        else:
            assert row[3] == f"{proposal.peak.device_bytes / GIB:,.2f} GiB"


def test_uncertain_proposals_stand_apart() -> None:
    found = small(4.2)
    assert found.uncertain
    assert any(title.startswith("Uncertain") for title in titles(found))


def test_what_other_keys_become_is_said() -> None:
    text = to_text(plan_report(plan(**FULL, budget_bytes=budget(3.6), keep=["sequence_length"], allow=["method", "lora_r",
        "target_modules", "micro_batch_size", "gradient_accumulation_steps", "load_in_4bit"], max_changes=2)))  # fmt: skip
    assert "also changes" in text


def test_boundaries_and_lengths() -> None:
    found = plan(**FULL, budget_bytes=5 * GIB, max_changes=1, largest=["batch"], lengths={100: 3, 4000: 2})
    text = to_text(plan_report(found))
    assert "As far as it goes" in text
    assert "The longest sample" in text
    assert "5" in text


def test_settings_are_written_as_recipes_are() -> None:
    assert settings_text({"loss": "chunked", "use_cache": False, "autocast_dtype": None, "peft": {"r": 4}}) == (
        'loss = chunked, use_cache = false, no autocast_dtype, peft = {"r": 4}'
    )


def test_a_recipe_that_is_not_covered_says_so() -> None:
    found = plan(**QLORA, stack="unsloth", budget_bytes=8 * GIB, max_changes=1)
    if found.current.unsupported:
        assert "Not covered in the recipe as given" in titles(found)
