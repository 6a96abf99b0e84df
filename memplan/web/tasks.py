"""What the computing processes do; every function here runs in one (`Work.run`).

The bytes of an answer are those that `memplan ... --json` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.estimate import Estimate
from memplan.web.body import NAME, read_json
from memplan.web.problems import Problem, ProblemError
from memplan.web.recipes import card_of, recipe_of


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is sent.

    Attributes:
        body: JSON.
        fits: the verdict's word, where there is a verdict.
        unsupported: whether something was not covered.
    """

    body: bytes
    fits: str = ""
    unsupported: bool = False


# -- estimates --------------------------------------------------------------------------------------------


def estimate(keys: Mapping[str, Any]) -> Estimate:
    """The estimate of the recipe with these keys, receipt lines included.

    Raises:
        MemplanError: as `memplan.estimate`, and for a model given as a path.
    """
    from memplan.engine import estimate as analytic

    return analytic(recipe_of(keys))


def estimate_body(body: bytes, max_depth: int) -> Answer:
    """The estimate of the recipe in a request's body.

    Raises:
        ProblemError: the body is no JSON object.
        MemplanError: as `estimate`.
    """
    return _answer(estimate(_object(read_json(body, max_depth))), indent=2)


def estimate_line(recipe: bytes) -> Answer:
    """The estimate of one recipe of a batch, on one line."""
    return _answer(estimate(json.loads(recipe)), indent=None)


def plan_body(body: bytes, max_depth: int) -> Answer:
    """The plan for the recipe in a request's body.

    Raises:
        ProblemError: the body is no JSON object.
        MemplanError: as `memplan.web.plans.plan_of`.
    """
    from memplan.web.plans import plan_of

    found = plan_of(_object(read_json(body, max_depth)))
    return Answer((found.to_json() + "\n").encode(), str(found.current.fits), bool(found.current.unsupported))


def check_body(body: bytes, max_depth: int, max_checks: int, max_explained: int) -> Answer:
    """The report on the budget file in a request's body.

    Raises:
        ProblemError: the body is no JSON object, or the budget file is wrong.
        MemplanError: as `memplan.web.checks.report_of`.
    """
    from memplan.web.checks import report_of

    report = report_of(_object(read_json(body, max_depth)), max_checks, max_explained)
    return Answer((report.to_json() + "\n").encode(), unsupported=any(check.unsupported for check in report.checks))


def batch_recipes(body: bytes, max_depth: int, max_batch: int) -> list[bytes | Problem]:
    """The recipes in a batch's body, each as JSON by itself; the problem of what is no recipe stands in its place.

    Raises:
        ProblemError: the body is not `{"recipes": [...]}`, or holds too many.
    """
    batch = _object(read_json(body, max_depth))
    for key in batch:
        if key != "recipes":
            raise ProblemError(
                Problem(422, "unknown_key", f"a batch has no key {key!r}", 'allowed: {"recipes": [...]}', str(key))
            )
    recipes = batch.get("recipes")
    if not isinstance(recipes, list) or not recipes:
        raise ProblemError(Problem(422, "invalid_value", "recipes is no list of recipes", field="recipes"))
    if len(recipes) > max_batch:
        raise ProblemError(
            Problem(
                422,
                "invalid_value",
                f"{len(recipes)} recipes are too many",
                f"at most {max_batch} in one batch",
                "recipes",
            )
        )
    return [json.dumps(one).encode() if isinstance(one, dict) else _no_recipe(one) for one in recipes]


def batch_line(index: int, found: Answer) -> bytes:
    """The line of a batch's answer that says the estimate of one recipe."""
    return b'{"index":%d,"estimate":%b}\n' % (index, found.body)


def _no_recipe(value: object) -> Problem:
    return Problem(422, "invalid_value", f"a recipe is an object of recipe keys, not {_kind(value)}", field="recipes")


def _answer(found: Estimate, indent: int | None) -> Answer:
    end = "\n" if indent else ""
    verdict = found.verdict_report
    return Answer(
        (found.to_json(indent=indent) + end).encode(),
        fits=str(verdict.fits) if verdict is not None else "",
        unsupported=bool(found.unsupported),
    )


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProblemError(
            Problem(422, "invalid_body", f"{NAME} holds {_kind(value)}", "an object of keys is what this address takes")
        )
    return value


def _kind(value: object) -> str:
    kinds: dict[type, str] = {str: "a text", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def preload() -> None:
    """Import what searches need, templates included, so that none of them waits for it."""
    import memplan.web.checks
    import memplan.web.pages.changes
    import memplan.web.plans  # noqa: F401
    from memplan.web.pages.rendering import environment

    for name in ("changes.html", "every_gpu.html", "every_method.html"):
        environment().get_template(name)


# -- what memplan knows -----------------------------------------------------------------------------------


def models() -> Answer:
    """Every model card, shortly."""
    from memplan.cards import card_ids, load_card
    from memplan.inventory import model_entry

    return _listing(model_entry, map(load_card, card_ids()))


def model(card_id: str) -> Answer:
    """One model card and what its weights take.

    Raises:
        ProblemError: there is no such card.
    """
    from memplan.inventory import model_details

    return _json(model_details(card_of(card_id)))


def gpus() -> Answer:
    """Every GPU."""
    from memplan.catalog.gpus import list_gpus
    from memplan.inventory import gpu_entry

    return _listing(gpu_entry, list_gpus())


def methods() -> Answer:
    """Every fine-tuning method."""
    from memplan.inventory import method_entry
    from memplan.methods import list_methods

    return _listing(method_entry, list_methods())


def optimizers() -> Answer:
    """Every optimizer, with the state that it keeps."""
    from memplan.inventory import optimizer_entry
    from memplan.optimizers.catalog import optimizer_rows

    return _listing(optimizer_entry, optimizer_rows().values())


def accuracy(source: str, by: str, engine: str) -> Answer:
    """Scores of the committed estimates against the committed records; an empty text stands for what was not said.

    Raises:
        UnknownNameError: a source, group or engine that does not exist.
    """
    from memplan.evidence import run_accuracy

    # Its Literals are checked by it, in its own words.
    names: dict[str, Any] = {"format": "json", "engine": engine or "estimate"}
    return Answer(run_accuracy(source or None, by or None, committed=True, **names).encode())


def components() -> dict[str, Any]:
    """The shapes of the API."""
    from memplan.web.components import components as all_of_them

    return all_of_them()


def samples() -> tuple[dict[str, Any], dict[str, list[Problem]]]:
    """Answers and errors for the description of the API; see `memplan.web.samples`."""
    from memplan.web.samples import samples as all_of_them

    return all_of_them()


def _listing(entry: Callable[[Any], dict[str, Any]], rows: Iterable[Any]) -> Answer:
    return _json([entry(row) for row in rows])


def _json(value: Any) -> Answer:
    return Answer((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
