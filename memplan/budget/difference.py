"""Why two runs need different memory: component by component, and key by key.

Every change is a full estimate of a real recipe. Keys are applied to the recipe before, one after the other in the order of
the recipe's keys; the steps sum to the whole change, whatever the keys do to each other. Each is also applied alone; what the
sum of those leaves of the whole is the interaction, and is stated as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.budget.recipes import Run
from memplan.budget.result import Attribution, ComponentChange, Difference, KeyChange, Side
from memplan.engine import estimate
from memplan.errors import MemplanError
from memplan.estimate import Component, Estimate
from memplan.recipe import Recipe

# More keys than this are another run, not a change: what each of them did says nothing any more.
MAX_KEYS = 16
UNSPLIT = "unsplit_blocks"
_MISSING = object()
Path = tuple[str, ...]


@dataclass(slots=True)
class Allowance:
    """Estimates that may still be made to say what each key does.

    Attributes:
        left: how many; None for any number.
    """

    left: int | None = None

    def take(self, keys: int) -> bool:
        """Take what `keys` changed keys cost at most; nothing is taken where too few are left."""
        estimates = 2 * (keys - 1)
        if self.left is None:
            return True
        if estimates > self.left:
            return False
        self.left -= estimates
        return True


def difference(
    before: Run,
    after: Run,
    *,
    labels: tuple[str, str] = ("before", "after"),
    answers: tuple[Estimate, Estimate] | None = None,
    allowance: Allowance | None = None,
) -> Difference:
    """Why the peaks of two runs differ.

    Args:
        before: one run.
        after: the other.
        labels: what a report calls them.
        answers: their estimates, where they are known.
        allowance: what may be spent on estimating key by key; None for anything.

    Raises:
        InputError, UnsupportedError: one of them cannot be estimated.
    """
    first, second = answers or (estimate(before.recipe), estimate(after.recipe))
    notes = []
    for label, answer in zip(labels, (first, second), strict=True):
        if answer.unsupported:
            notes.append(f"{label} is a lower bound: {'; '.join(answer.unsupported)}")
    alike = bool(first.timeline) == bool(second.timeline)
    if not alike:
        notes.append("the step of one of the two is not covered: the difference is not what the change does")
    if alike and not first.timeline:
        notes.append("model states alone are compared: what the change does to the step is not known")
    steps = list(_changes(before.recipe.said(), after.recipe.said()))
    attributions: tuple[Attribution, ...] = ()
    interaction = None
    total = second.peak.device_bytes - first.peak.device_bytes
    if len(steps) > MAX_KEYS:
        notes.append(f"{len(steps)} recipe keys differ: too many to say what each of them does")
    elif allowance is not None and alike and steps and not allowance.take(len(steps)):
        notes.append(
            f"what each of the {len(steps)} changed keys does is left out: there are more changes than this service explains "
            "at once, ask for fewer checks"
        )
    elif alike and steps:
        attributions = tuple(_attribute(before.recipe, steps, first, second, (before.model, after.model)))
        alone = [one.alone_bytes for one in attributions]
        interaction = None if None in alone else total - sum(value for value in alone if value is not None)
    if before.recipe.uncovered != after.recipe.uncovered:
        notes.append("the configs ask for different things that no recipe key says")
    said = {change[0][0] for change in steps}
    return Difference(
        before=_side(labels[0], before, first),
        after=_side(labels[1], after, second),
        change_bytes=total,
        components=component_changes(first, second),
        changed=tuple(_shown(step, (before.model, after.model)) for step in steps),
        implied=tuple(
            KeyChange(key=".".join(path), before=old, after=new)
            for path, old, new in _changes(_plain(first.recipe), _plain(second.recipe))
            if path[0] not in said and path[0] != "model"
        ),
        attributions=attributions,
        interaction_bytes=interaction,
        notes=tuple(notes),
    )


def component_changes(before: Estimate, after: Estimate) -> tuple[ComponentChange, ...]:
    """Components at both peaks up to the device's bytes, in the order of `Component`; equal ones are listed too."""
    first, second = _parts(before), _parts(after)
    order = [str(component) for component in Component]
    order.insert(order.index(str(Component.ALLOCATOR_CACHE)), UNSPLIT)
    return tuple(
        ComponentChange(component=name, before_bytes=first.get(name, 0), after_bytes=second.get(name, 0))
        for name in order
        if first.get(name) or second.get(name)
    )


def _parts(answer: Estimate) -> dict[str, int]:
    peak = answer.peak
    return {
        **{str(entry.component): entry.bytes for entry in answer.components},
        UNSPLIT: peak.allocated_bytes - peak.live_bytes,
        str(Component.ALLOCATOR_CACHE): peak.reserved_bytes - peak.allocated_bytes,
        str(Component.CUDA_CONTEXT): peak.device_bytes - peak.reserved_bytes,
    }


Step = tuple[Path, Any, Any]


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Step]:
    """Keys that differ, in the order of the recipe's keys; those of `peft` and `optim_args` one by one."""
    for key in [name for name in Recipe.model_fields if name in before or name in after]:
        old, new = before.get(key), after.get(key)
        if old == new and type(old) is type(new):
            continue
        if key != "model" and isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in sorted({*old, *new}):
                if old.get(name, _MISSING) != new.get(name, _MISSING):
                    yield (key, name), old.get(name), new.get(name)
        else:
            yield (key,), old, new


def _applied(said: Mapping[str, Any], step: Step) -> dict[str, Any]:
    path, _, value = step
    found = dict(said)
    holder = found
    if len(path) == 2:
        holder = found[path[0]] = dict(found.get(path[0]) or {})
    if value is None:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value
    return found


def _attribute(
    before: Recipe, steps: list[Step], first: Estimate, last: Estimate, models: tuple[str, str]
) -> Iterator[Attribution]:
    """Steps that only make a recipe together with the next ones are taken together."""
    covered = bool(first.timeline)
    said, group, reached = before.said(), list[Step](), first.peak.device_bytes
    for index, step in enumerate(steps):
        said = _applied(said, step)
        group.append(step)
        if index == len(steps) - 1:
            answer: int | None = last.peak.device_bytes
        else:
            answer = _device_bytes(said, before, covered)
        if answer is None:
            continue
        if len(steps) == len(group):
            alone: int | None = last.peak.device_bytes - first.peak.device_bytes
        else:
            changed = before.said()
            for one in group:
                changed = _applied(changed, one)
            found = _device_bytes(changed, before, covered)
            alone = None if found is None else found - first.peak.device_bytes
        yield Attribution(
            changes=tuple(_shown(one, models) for one in group), in_order_bytes=answer - reached, alone_bytes=alone
        )
        group, reached = [], answer


def _device_bytes(said: Mapping[str, Any], like: Recipe, covered: bool) -> int | None:
    """The device peak; None where the keys make no recipe, or the step is not covered as that of the others is."""
    try:
        answer = estimate(Recipe(**said).with_uncovered(like.uncovered))
    except MemplanError:
        return None
    return answer.peak.device_bytes if bool(answer.timeline) == covered else None


def _shown(step: Step, models: tuple[str, str]) -> KeyChange:
    path, old, new = step
    if path == ("model",):
        old, new = models
        if old == new:  # a config of the same name with other sizes
            old, new = f"{old} as it was", f"{new} as it is"
    return KeyChange(key=".".join(path), before=_plain(old), after=_plain(new))


def _side(label: str, run: Run, answer: Estimate) -> Side:
    recipe = _plain({**answer.recipe, "model": run.model})
    return Side(
        label=label,
        model=run.model,
        recipe=recipe,
        peak=answer.peak,
        is_covered=bool(answer.timeline),
        unsupported=answer.unsupported,
    )


_PLAIN: Mapping[type, Callable[[Any], Any]] = {tuple: list, set: sorted, frozenset: sorted}


def _plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    convert = _PLAIN.get(type(value))
    if convert is not None:
        return [_plain(entry) for entry in convert(value)]
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
