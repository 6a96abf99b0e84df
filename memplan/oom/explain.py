"""From a traceback, and the recipe if there is one, to an explanation: cause, tensor, remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memplan.catalog.gpus import Gpu, list_gpus
from memplan.engine import estimate
from memplan.errors import MemplanError
from memplan.estimate import Estimate, Fits
from memplan.oom.candidates import LARGEST_SHARED_SEGMENT_BYTES, Candidate, candidates
from memplan.oom.cause import Cause, Diagnosis, diagnose
from memplan.oom.frames import Place, place_of
from memplan.oom.message import OomMessage, parse, printed
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.units import format_bytes
from memplan.unsupported import unsupported_parts


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to do.

    Attributes:
        title: in words.
        sets: recipe keys with their new values; empty where it is no change of the recipe.
        device_bytes: what the changed recipe needs of the card; None where it was not estimated.
        fits: the verdict on the changed recipe, or None.
    """

    title: str
    sets: dict[str, Any]
    device_bytes: int | None = None
    fits: Fits | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that can be said about one message.

    Attributes:
        gpu: the catalog's card of this capacity, by its id, or None where none or several have it.
        candidates: the tensors it can have been, best first; without a recipe none.
        estimate: of the recipe, or None.
        remedies: what to do, the least painful change first.
        notes: what is not certain, and what does not agree.
    """

    message: OomMessage
    place: Place
    diagnosis: Diagnosis
    gpu: str | None
    candidates: tuple[Candidate, ...]
    estimate: Estimate | None
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]


def explain(text: str, recipe: Recipe | None = None) -> Explanation:
    """Explain the last out-of-memory error in `text`.

    Args:
        text: a traceback or a log.
        recipe: what was run, if it is known.

    Raises:
        InputError: the text holds no such error, or the recipe is wrong.
        UnsupportedError: a recipe of which not even the model states are known.
    """
    message, place = parse(text), place_of(text)
    diagnosis = diagnose(message)
    gpu = _gpu(message, recipe)
    notes: list[str] = []
    found: tuple[Candidate, ...] = ()
    answer: Estimate | None = None
    if recipe is not None:
        if recipe.gpu is None and gpu is not None:
            recipe = recipe.replace(gpu=gpu.id)
        answer = estimate(recipe)
        found = _candidates(message, place, recipe, notes)
        notes += _disagreements(message, answer)
    elif message.requested_bytes is not None:
        notes.append("no recipe given: with one, the tensor is named and the change is worked out")
    remedies = _remedies(message, diagnosis, recipe, notes)
    return Explanation(message, place, diagnosis, gpu.id if gpu else None, found, answer, remedies, tuple(notes))


def _gpu(message: OomMessage, recipe: Recipe | None) -> Gpu | None:
    """The recipe's card, else the only one whose capacity prints as the message has it."""
    if recipe is not None and recipe.gpu is not None:
        return resolve(recipe).gpu
    if message.capacity_bytes is None:
        return None
    wanted = printed(message.capacity_bytes)
    alike = [gpu for gpu in list_gpus() if printed(gpu.usable_bytes) == wanted]
    return alike[0] if len(alike) == 1 else None


def _candidates(message: OomMessage, place: Place, recipe: Recipe, notes: list[str]) -> tuple[Candidate, ...]:
    resolved = resolve(recipe)
    prepared = prepare(resolved)
    missing = unsupported_parts(resolved, prepared)
    if missing.step:
        notes.append(f"the tensor is not named, because the step is not covered: {'; '.join(missing.texts)}")
        return ()
    found = candidates(message, place, resolved, prepared)
    if not found and message.requested_bytes is not None:
        if message.requested_bytes <= LARGEST_SHARED_SEGMENT_BYTES:
            notes.append(
                "a request of 20 MiB or less stands for any tensor below 10 MiB: the last straw, not the cause"
            )
        else:
            notes.append("no tensor of this recipe has that size: what ran differs from the recipe (a longer batch?)")
    return found


def _disagreements(message: OomMessage, answer: Estimate) -> list[str]:
    allocated = message.allocated_bytes
    if allocated is None or answer.unsupported:
        return []
    found = []
    if allocated > answer.peak.allocated_bytes:
        found.append(
            f"{format_bytes(allocated)} was in tensors when it failed, more than the recipe's peak of "
            f"{format_bytes(answer.peak.allocated_bytes)}: longer sequences, a second model, or kept results"
        )
    verdict = answer.verdict_report
    if verdict is not None and verdict.fits is Fits.FITS:
        found.append(
            "by the estimate this recipe fits that card: what ran differs from the recipe, or others shared it"
        )
    return found


def _remedies(message: OomMessage, diagnosis: Diagnosis, recipe: Recipe | None, notes: list[str]) -> tuple[Remedy, ...]:
    found = []
    cause = diagnosis.cause
    if cause is Cause.FRAGMENTATION:
        setting = f"set {message.variable}=expandable_segments:True before torch is imported"
        found.append(Remedy(setting, {"expandable_segments": True}))
    elif cause is Cause.REFUSED:
        found.append(
            Remedy("look for a limit outside of torch: nvidia-smi, MIG, the driver, Windows' shared memory", {})
        )
    elif cause is Cause.LIMIT:
        found.append(Remedy("raise the limit of torch.cuda.set_per_process_memory_fraction", {}))
    elif cause is Cause.OTHER_PROCESSES:
        found.append(Remedy("end the other processes on this card, or choose another card", {}))
    elif cause is Cause.OUTSIDE_ALLOCATOR:
        found.append(Remedy("leave room beside torch's allocator: what follows frees memory inside it", {}))
    if recipe is not None:
        found += _planned(message, recipe, notes)
    return tuple(found)


def _planned(message: OomMessage, recipe: Recipe, notes: list[str]) -> list[Remedy]:
    """What the planner proposes for the card, or for the capacity where the card is not known."""
    from memplan.planner import plan

    limit = message.allowed_bytes or message.capacity_bytes
    if recipe.gpu is None and limit is None:
        notes.append("no card is known: name one with gpu, and the change is worked out")
        return []
    try:
        made = plan(recipe) if recipe.gpu is not None else plan(recipe, budget_bytes=limit)
    except MemplanError as error:
        notes.append(f"no change was worked out: {error.message}")
        return []
    found = []
    for proposal in (made.cheapest, made.smallest):
        if proposal is not None and proposal.changes:
            remedy = Remedy(
                "; ".join(change.title for change in proposal.changes),
                dict(proposal.sets),
                proposal.peak.device_bytes,
                proposal.fits,
            )
            if remedy not in found:
                found.append(remedy)
    if not found and made.fits is not Fits.FITS:
        notes.append("no change in the planner's space makes this recipe fit that card for certain")
    return found


__all__ = ["Explanation", "Remedy", "explain"]
