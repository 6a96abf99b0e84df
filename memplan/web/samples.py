"""Answers and errors for the API's description, made by the functions that serve them. Runs in a computing process.

A listing is cut to its first two entries, and so are the lists of the accuracy report; every other sample is the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from memplan.web import tasks
from memplan.web.problems import Problem
from memplan.web.schemas import BATCH_EXAMPLES, CHECK_EXAMPLES, MODEL_EXAMPLE, PLAN_EXAMPLES, RECIPE_EXAMPLES
from memplan.web.settings import Settings
from memplan.web.worker import answer

CUT = 2
_RECIPE = {"model": MODEL_EXAMPLE, "gpu": "rtx-4090"}
_WRONG_RECIPES: tuple[Mapping[str, Any], ...] = (
    _RECIPE | {"bacth": 4},
    _RECIPE | {"model": "mistral-8b"},
    _RECIPE | {"sequence_length": 0},
)
_WRONG: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "estimate": _WRONG_RECIPES,
    "plan": (*_WRONG_RECIPES, {"model": MODEL_EXAMPLE}),
    "estimate_batch": ({"recipes": []}, {"recipe": _RECIPE}),
    "check": ({"confg": {}}, {"config": {"schema": 1, "check": [{"name": "sft", "recipe": _RECIPE, "budget": "20"}]}}),
}
_BROKEN = (b'{"model": ', b'{"model": "gpt2", "model": "gpt2"}', b'{"model": "caf\xe9"}')


def samples() -> tuple[dict[str, Any], dict[str, list[Problem]]]:
    """The answer to each operation's first example, and what wrong requests are answered; by operation."""
    limits = Settings()
    depth, checks = limits.max_depth, (limits.max_checks, limits.max_explained)
    posts: dict[str, Callable[[bytes], Any]] = {
        "estimate": lambda body: tasks.estimate_body(body, depth),
        "plan": lambda body: tasks.plan_body(body, depth),
        "check": lambda body: tasks.check_body(body, depth, *checks),
        "estimate_batch": lambda body: tasks.batch_recipes(body, depth, limits.max_batch),
    }
    examples = {"estimate": RECIPE_EXAMPLES, "plan": PLAN_EXAMPLES, "check": CHECK_EXAMPLES}
    answers = {name: _value(posts[name](_body(next(iter(found.values()))))) for name, found in examples.items()}
    recipes = posts["estimate_batch"](_body(next(iter(BATCH_EXAMPLES.values()))))
    answers["estimate_batch"] = "".join(_line(index, recipe) for index, recipe in enumerate(recipes))
    answers |= {
        "models": _value(tasks.models())[:CUT],
        "model": _value(tasks.model(MODEL_EXAMPLE)),
        "gpus": _value(tasks.gpus())[:CUT],
        "methods": _value(tasks.methods())[:CUT],
        "optimizers": _value(tasks.optimizers())[:CUT],
        "accuracy": cut(_value(tasks.accuracy("", "", ""))),
    }
    problems = {
        name: [answer(posts[name], (text,)) for text in (*_BROKEN, *map(_body, wrong))]
        for name, wrong in _WRONG.items()
    }
    problems["model"] = [answer(tasks.model, ("mistral-8b",))]
    problems["accuracy"] = [answer(tasks.accuracy, ("t5", "", ""))]
    return answers, problems


def cut(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with the first entries of its lists."""
    return {key: value[:CUT] if isinstance(value, list) else value for key, value in report.items()}


def _line(index: int, recipe: bytes | Problem) -> str:
    assert isinstance(recipe, bytes)
    return tasks.batch_line(index, tasks.estimate_line(recipe)).decode()


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


def _value(found: tasks.Answer) -> Any:
    return json.loads(found.body)
