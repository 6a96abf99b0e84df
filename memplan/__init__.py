"""memplan: how much GPU memory a training run needs, where it goes, and whether it fits.

    import memplan
    recipe = memplan.Recipe(model="mistralai/Mistral-7B-v0.1", method="qlora", micro_batch_size=4, sequence_length=2048)
    est = memplan.estimate(recipe)
    est.peak.allocated_bytes, est.verdict("rtx-4090").fits

Importing this costs pydantic and the standard library; the engine is loaded by the first estimate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan.errors import InputError, MemplanError, UnavailableError, UnsupportedError
from memplan.estimate import Component, Estimate, Fits, Phase
from memplan.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from memplan.budget.result import CheckReport
    from memplan.model_state import ModelState
    from memplan.planner.result import Plan

__version__ = "0.1.0"

__all__ = [
    "Component",
    "Estimate",
    "Fits",
    "InputError",
    "MemplanError",
    "Phase",
    "Recipe",
    "UnavailableError",
    "UnsupportedError",
    "check",
    "estimate",
    "model_states",
    "plan",
]


def estimate(recipe: Recipe | None = None, /, **keys: Any) -> Estimate:
    """How much memory the run needs, where it goes and when, and whether it fits.

    Args:
        recipe: a `Recipe`; or give its keys as keyword arguments. With both, the keywords change the recipe.
        keys: recipe keys.

    Raises:
        InputError: the recipe is wrong; says what, what is allowed, and what was probably meant.
        UnsupportedError: a method or optimizer for which not even the model states are known.
    """
    from memplan import engine

    return engine.estimate(recipe, **keys)


def model_states(recipe: Recipe | None = None, /, **keys: Any) -> ModelState:
    """Exact parameters, and bytes of weights, gradients and optimizer states, without walking the step.

    Raises:
        InputError: the recipe is wrong.
        UnsupportedError: the method or optimizer has no rule.
    """
    from memplan import engine

    return engine.model_states(recipe, **keys)


def plan(recipe: Recipe | None = None, /, **options: Any) -> Plan:
    """What to change so that a recipe fits a GPU or a memory budget, least painful first.

    Args:
        recipe: a `Recipe`; or give its keys as keyword arguments. With both, the keywords change the recipe.
        options: recipe keys (`gpu` among them), and those of `memplan.planner.plan`: `budget_bytes`, `keep`, `allow`, ...

    Raises:
        InputError: the recipe or an option is wrong.
        UnsupportedError: a method or optimizer for which not even the model states are known.
    """
    from memplan.planner import plan as search

    return search(recipe, **options)


def check(path: str | Path | None = None, **options: Any) -> CheckReport:
    """Judge the training runs of a budget file by their limits.

    Args:
        path: a memplan.toml, or a pyproject.toml with `[tool.memplan]`; by default the nearest above the working folder.
        options: those of `memplan.budget.check`: `base`, `on_uncertain`, `suggest`.

    Raises:
        InputError: the file or an option is wrong, or there is no file.
        UnavailableError: `path` or the base is not there.
    """
    from memplan.budget import check as judge

    return judge(path, **options)
