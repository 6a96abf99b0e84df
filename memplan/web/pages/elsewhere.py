"""The same recipe on every GPU, and with every method on its GPU. Runs in a computing process.

What an estimate takes from a GPU is its compute capability (kernels, autocast type) and its BLAS workspace, which goes by
the instruction set. GPUs that agree in those share one estimate, and each has its own verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.catalog.gpus import Gpu, list_gpus
from memplan.engine import estimate as analytic
from memplan.errors import InputError, MemplanError
from memplan.estimate import Estimate, Fits, VerdictReport
from memplan.methods import Method, list_methods
from memplan.recipe import KEYS_OF_THE_BASE, KEYS_OF_THE_METHOD, Recipe
from memplan.web.pages.keys import canonical
from memplan.web.pages.rendering import render
from memplan.web.recipes import recipe_of


@dataclass(frozen=True, slots=True)
class Place:
    """The recipe on one GPU.

    Attributes:
        verdict: None where the recipe has no answer there; `why_not` says why.
        is_floor: whether something is not covered, so that the figures are lower bounds.
        keys: recipe keys that lead there.
    """

    gpu: Gpu
    verdict: VerdictReport | None
    keys: Mapping[str, Any]
    is_current: bool
    is_floor: bool = False
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """The recipe with one method.

    Attributes:
        device_bytes: at the peak; a lower bound where `is_floor`.
        dropped: keys of the recipe that the method has no use for.
    """

    method: Method
    device_bytes: int
    trainable: int
    fits: Fits | None
    is_floor: bool
    keys: Mapping[str, Any]
    is_current: bool
    dropped: tuple[str, ...] = ()
    why_not: str = ""


def every_gpu(recipe: Recipe) -> list[Place]:
    """One verdict a GPU, in the order of the catalog."""
    said = canonical(recipe.said())
    answers: dict[tuple[object, ...], Estimate | MemplanError] = {}
    found = []
    for gpu in list_gpus():
        alike = (gpu.vendor, gpu.compute_capability, gpu.instruction_set)
        if alike not in answers:
            try:
                answers[alike] = analytic(recipe.replace(gpu=gpu.id))
            except MemplanError as error:
                answers[alike] = error
        answer, keys = answers[alike], {**said, "gpu": gpu.id}
        is_current = said.get("gpu") == gpu.id
        if isinstance(answer, MemplanError):
            found.append(Place(gpu, None, keys, is_current, why_not=answer.message))
        else:
            found.append(Place(gpu, answer.verdict(gpu.id), keys, is_current, bool(answer.unsupported)))
    return found


def every_method(recipe: Recipe) -> list[Way]:
    """One row a method, in the registry's order."""
    current = analytic(recipe).recipe["method"]
    return [_way(recipe, method, method.name == current) for method in list_methods()]


def _way(recipe: Recipe, method: Method, is_current: bool) -> Way:
    said = recipe.said()
    if is_current:
        attempts = [said]
    else:
        fresh = {key: value for key, value in said.items() if key != "peft"} | {"method": method.name}
        attempts = [fresh]
        # LoRA's own settings are tried on its relatives; the rest gets its defaults.
        attempts.append({key: value for key, value in fresh.items() if key not in KEYS_OF_THE_METHOD})
        without = (*KEYS_OF_THE_METHOD, *KEYS_OF_THE_BASE)
        attempts.append({key: value for key, value in fresh.items() if key not in without})
    reason = ""
    for keys in attempts:
        try:
            answer = analytic(recipe_of(keys).with_uncovered(recipe.uncovered))
        except InputError as error:
            reason = error.message
            continue
        except MemplanError as error:
            reason = error.message
            break
        verdict = answer.verdict_report
        return Way(
            method,
            answer.peak.device_bytes,
            answer.parameters.trainable,
            verdict.fits if verdict is not None else None,
            bool(answer.unsupported),
            keys,
            is_current,
            tuple(key for key in said if key not in keys),
        )
    return Way(method, 0, 0, None, False, attempts[0], is_current, (), reason)


def gpus_html(keys: Mapping[str, Any], root: str) -> str:
    """The table of GPUs.

    Raises:
        MemplanError: as `memplan.estimate`.
    """
    recipe = recipe_of(keys)
    analytic(recipe)
    return str(render("every_gpu.html", places=every_gpu(recipe), root=root))


def methods_html(keys: Mapping[str, Any], root: str) -> str:
    """The table of methods.

    Raises:
        MemplanError: as `memplan.estimate`.
    """
    recipe = recipe_of(keys)
    return str(render("every_method.html", ways=every_method(recipe), root=root, gpu=recipe.gpu))
