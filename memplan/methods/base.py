"""Methods without PEFT: full fine-tuning, partial freezing by patterns, and BitFit."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from memplan.architecture import Architecture
from memplan.errors import InvalidValueError, closest
from memplan.methods.adaptation import Adaptation
from memplan.methods.targets import compile_pattern, ends_with_name
from memplan.recipe import Task

_REGEX = "re:"


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of `trainable` names a parameter.

    - `re:` and a regular expression: it must match the full name.
    - with `*`, `?` or `[`: a shell pattern over the full name (`model.layers.3*`).
    - otherwise a parameter's name, or the path or last part of a module that holds it (`lm_head`, `model.layers.31`).
    """
    if pattern.startswith(_REGEX):
        return compile_pattern("trainable", pattern.removeprefix(_REGEX)).fullmatch(name) is not None
    if any(letter in pattern for letter in "*?["):
        return fnmatchcase(name, pattern)
    path = name
    while path:
        if path == pattern or ends_with_name(path, {pattern}):
            return True
        path = path.rpartition(".")[0]
    return False


def full(architecture: Architecture, trainable: Sequence[str] | None) -> Adaptation:
    """Every parameter trained, or those that a pattern names.

    Args:
        architecture: the model.
        trainable: patterns (see `matches`); a parameter is trained if the last pattern that names it does not begin
            with `!`. `("model.layers.*", "!*norm*")` trains the layers without their norms.

    Raises:
        InvalidValueError: a pattern that names nothing, or nothing left to train.
    """
    names = [name for name, _, _ in architecture.named_parameters()]
    if trainable is None:
        return Adaptation(method="full", trainable_base=frozenset(names) - architecture.frozen)
    aliases = {name: [name] for name in names}
    for name, source in architecture.tied.items():
        aliases.setdefault(source, [source]).append(name)
    chosen: set[str] = set()
    for pattern in trainable:
        wanted = pattern.removeprefix("!")
        hits = {name for name in names if any(matches(wanted, alias) for alias in aliases[name])}
        if not hits:
            near = closest(wanted.strip("*.").rpartition(".")[2], {module.name for module in architecture.modules})
            hint = f"did you mean {', '.join(near)}?\n" if near else ""
            raise InvalidValueError(
                "trainable",
                pattern,
                "no parameter has such a name",
                hint=f"{hint}names look like {names[0]}, {names[len(names) // 2]}, {names[-1]}",
            )
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    if not chosen:
        raise InvalidValueError("trainable", list(trainable), "nothing is left to train")
    return Adaptation(method="full", trainable_base=frozenset(chosen))


def bitfit(architecture: Architecture) -> Adaptation:
    """Biases trained, and the whole head that a classification task adds.

    Source: Ben Zaken, Ravfogel, Goldberg, "BitFit" (2022): bias terms and the task's classification layer.

    Raises:
        InvalidValueError: the model has no biases.
    """
    names = [name for name, _, _ in architecture.named_parameters()]
    biases = {name for name in names if name.rpartition(".")[2] == "bias"}
    if not biases:
        raise InvalidValueError("method", "bitfit", f"this {architecture.model_type} model has no bias to train")
    # The head of a language model was trained with it, and adds nothing to train.
    heads = tuple(f"{path}." for path in architecture.head_modules if architecture.task is not Task.MASKED_LM)
    return Adaptation(
        method="bitfit", trainable_base=frozenset(biases | {name for name in names if heads and name.startswith(heads)})
    )
