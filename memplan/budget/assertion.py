"""One run, judged for a test: `memplan.budget.pytest_plugin` calls it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.budget.checking import Options, run_checks
from memplan.budget.config import specs_of
from memplan.budget.files import FolderFiles
from memplan.budget.growth import Past
from memplan.budget.result import CheckResult
from memplan.documents import Document
from memplan.errors import InputError, InvalidValueError
from memplan.recipe import Recipe

LIMITS = ("budget", "gpu", "level", "headroom", "on_uncertain", "message", "format", "framework_version")


def judge_run(
    root: Path, recipe: str | Path | Recipe | Mapping[str, Any] | None = None, **options: Any
) -> tuple[CheckResult, str]:
    """The result for one run, and a report of it.

    Args:
        root: what paths are relative to.
        recipe: a recipe, its keys, or the path of a recipe or training config; None where `options` are its keys.
        options: limits as in a budget file (`on_uncertain` is fail unless given); everything else is a recipe key.

    Raises:
        InputError: no run, no limit, or a limit that cannot be read.
    """
    limits: dict[str, Any] = {"on_uncertain": "fail"}
    limits |= {key: options[key] for key in LIMITS if options.get(key) is not None}
    override = {key: value for key, value in options.items() if key not in LIMITS}
    uncovered: tuple[str, ...] = ()
    name: str = "recipe"
    if isinstance(recipe, str | Path):
        name = Path(recipe).as_posix()
        run: dict[str, Any] = {"config": name, "override": override}
    elif recipe is None or isinstance(recipe, Recipe | Mapping):
        said = recipe.said() if isinstance(recipe, Recipe) else dict(recipe or {})
        uncovered = recipe.uncovered if isinstance(recipe, Recipe) else ()
        run = {"recipe": {**said, **override}}
        if not run["recipe"]:
            raise InputError(
                "no run is given", hint='give a recipe or a config: memplan_budget("configs/sft.yaml", ...)'
            )
    else:
        raise InvalidValueError("recipe", recipe, "a Recipe, its keys, or the path of a file")
    specs = specs_of(
        Document("memplan_budget", "json", {"schema": 1, "check": [{"name": name[-100:], **run, **limits}]})
    )
    if uncovered:
        raise InputError(
            f"the recipe leaves out what its config asks for: {'; '.join(uncovered)}",
            hint="judge the config file itself",
        )
    report = run_checks(specs, FolderFiles(root), Past(), "memplan_budget", Options())
    return report.checks[0], report.to_text().rstrip()
