"""The sample: what is in it, a part of it walked and traced, and how its results are judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memplan.agreement import CELLS, Cell, Result, meets_goal, quick_sample, run, sample, to_markdown
from memplan.agreement.cases import factors, is_walked, plain_row, recipe_of, small_config, walked_types
from memplan.agreement.covering import pairs_of
from memplan.compare import Comparison, PhaseDifference
from memplan.families import family_of, model_types

IN_CI = 60


def test_model_types_come_from_the_registry() -> None:
    assert set(factors()["model_type"]) == {name for name in model_types() if name in family_of(name).walked}


@pytest.mark.parametrize("model_type", walked_types())
def test_the_plain_row_of_each_model_type_is_walked(model_type: str) -> None:
    assert is_walked(plain_row(model_type=model_type))
    assert small_config(model_type)["model_type"] == model_type


def test_a_row_becomes_the_recipe_that_it_says() -> None:
    row = plain_row(method="qlora", checkpointing="reentrant", padding="yes", outputs="cache kept", precision="amp")
    recipe = recipe_of(row)
    assert (recipe.method, recipe.activation_checkpointing, recipe.padding) == ("qlora", "reentrant", True)
    assert (recipe.use_cache, recipe.keep_outputs, recipe.precision) == (True, True, "amp")
    assert recipe.micro_batch_size is not None
    assert recipe.sequence_length is not None
    assert recipe.micro_batch_size * recipe.sequence_length > 1536


def test_the_quick_sample_has_every_model_type_and_is_always_the_same() -> None:
    cells = quick_sample(IN_CI)
    assert len(cells) == len(set(cells)) == IN_CI
    assert {cell.model_type for cell in cells} == set(walked_types())
    assert cells == quick_sample(IN_CI)


@pytest.mark.full_matrix
def test_the_quick_sample_agrees() -> None:
    results = run(quick_sample(IN_CI))
    assert meets_goal(results), to_markdown(results)


@pytest.mark.full_matrix
def test_the_whole_sample_agrees() -> None:
    cells = sample()
    assert len(cells) >= CELLS
    order = list(factors())
    covered = set().union(*(pairs_of(cell.choices, order) for cell in cells))
    for method in factors()["method"]:
        assert {
            (("method", method), ("padding", "yes")),
            (("method", method), ("checkpointing", "reentrant")),
        } <= covered
    results = run(cells)
    assert meets_goal(results), to_markdown(results)


# -- judging -----------------------------------------------------------------------------------------------


def result(difference: int = 0, **keys: object) -> Result:
    row = plain_row()
    phase = PhaseDifference(1, "forward", 10_000_000 + difference, 10_000_000, 5_000, 5_000, "mm", "mm")
    comparison = Comparison(recipe_of(row), (phase,), parameters_equal=True)
    return Result(Cell(tuple(row.items())), replace(comparison, **keys))  # type: ignore[arg-type]


def test_the_goal_is_met_by_exact_cells() -> None:
    assert meets_goal([result()] * 20)


def test_a_small_difference_in_one_of_twenty_is_allowed_and_in_two_is_not() -> None:
    assert meets_goal([result(512), *[result()] * 19])
    assert not meets_goal([result(512), result(512), *[result()] * 18])


@pytest.mark.parametrize(
    "bad", [result(20_000), result(parameters_equal=False), result(phases=(), refusal="trace: failed")]
)
def test_one_large_difference_or_missing_answer_fails_the_goal(bad: Result) -> None:
    assert not meets_goal([bad, *[result()] * 99])


def test_no_cells_do_not_meet_the_goal() -> None:
    assert not meets_goal([])


def test_the_page_names_every_deviating_cell() -> None:
    page = to_markdown([result(), result(1024), result(phases=(), refusal="trace: failed in aten::mm")])
    assert "**3 cells, 1 exact, 2 within 0.1%.**" in page
    assert "step 1 forward +1,024 bytes at its peak, +0 at its end" in page
    assert "trace: failed in aten::mm" in page
    assert "| llama | 3 | 1 | 2 | 0.0102% |" in page
