"""Memory budgets in a project's own tests.

    def test_sft_fits(memplan_budget):
        memplan_budget("configs/sft.yaml", budget="72 GiB", gpu="h100-sxm-80gb")

    @pytest.mark.memplan_budget("configs/sft.yaml", gpu="rtx-4090")
    def test_training_step(): ...

Paths are relative to pytest's root directory. A run that is over fails the test; one that is uncertain or not covered fails
too, unless `on_uncertain="warn"` or `"pass"`: a test asserts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memplan.budget.result import CheckResult
    from memplan.recipe import Recipe

MARKER = "memplan_budget"
Judge = Callable[..., "CheckResult"]


class MemplanBudgetWarning(UserWarning):
    """A run whose budget is uncertain, where that does not fail."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(recipe, *, budget, gpu, level, headroom, on_uncertain, **keys): "
        "fail unless the training run stays within the memory budget and fits the GPU",
    )


@pytest.fixture
def memplan_budget(request: pytest.FixtureRequest) -> Judge:
    """Judges a training run, and fails the test with a readable report where it is not within its limits."""
    root = request.config.rootpath

    def judge(recipe: str | Path | Recipe | Mapping[str, Any] | None = None, **options: Any) -> CheckResult:
        __tracebackhide__ = True
        return _judge(root, recipe, options)

    return judge


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Judge the runs of a test's markers before the test itself runs."""
    __tracebackhide__ = True
    for marker in item.iter_markers(MARKER):
        if len(marker.args) > 1:
            pytest.fail(f"@pytest.mark.{MARKER} takes one recipe, not {len(marker.args)}", pytrace=False)
        _judge(item.config.rootpath, marker.args[0] if marker.args else None, dict(marker.kwargs))


def _judge(root: Path, recipe: str | Path | Recipe | Mapping[str, Any] | None, options: dict[str, Any]) -> CheckResult:
    __tracebackhide__ = True
    from memplan.budget.assertion import judge_run
    from memplan.budget.result import Outcome
    from memplan.errors import MemplanError

    try:
        result, text = judge_run(root, recipe, **options)
    except MemplanError as error:
        pytest.fail(f"memplan: {error}", pytrace=False)
    if result.outcome in (Outcome.FAIL, Outcome.ERROR):
        pytest.fail(text, pytrace=False)
    if result.outcome is Outcome.WARN:
        warnings.warn(MemplanBudgetWarning(text), stacklevel=3)
    return result
