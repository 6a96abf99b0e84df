"""Optimizer options: converters that check a value, and transformers' `optim_args` string."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.dtypes import DType, parse_dtype
from memplan.errors import InvalidValueError

# Hyperparameters that move no byte in any optimizer of the catalog: accepted and left aside.
WITHOUT_EFFECT = frozenset({
    "alpha", "beta1", "beta2", "beta3", "betas", "clip_threshold", "dampening", "decay_rate", "decouple_lr", "eps",
    "learning_rate", "lr", "lr_decay", "max_lr", "r", "scale", "scale_parameter", "t_alpha", "t_beta3", "warmup_init",
    "warmup_steps", "weight_lr_power",
})  # fmt: skip


def as_bool(key: str, value: object) -> bool:
    """A boolean, or the words that transformers reads as one.

    Raises:
        InvalidValueError: neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "1", "yes"}:
        return True
    if isinstance(value, str) and value.lower() in {"false", "0", "no"}:
        return False
    raise InvalidValueError(key, value, "true or false")


def as_truthy(key: str, value: object) -> bool | None:
    """`bool(value)`, as transformers converts some options: every non-empty string is True, "False" too."""
    return None if value is None else bool(value)


def as_number(key: str, value: object) -> float:
    """A finite number that is not negative.

    Raises:
        InvalidValueError: not a number, or negative.
    """
    number = _number(value)
    if number is None or not 0.0 <= number < float("inf"):
        raise InvalidValueError(key, value, "a number, zero or more")
    return number


def as_positive_int(key: str, value: object) -> int:
    """A whole number, one or more.

    Raises:
        InvalidValueError: not a whole number, or less than one.
    """
    number = _number(value)
    if number is None or number != number or number in (float("inf"), float("-inf")) or number != int(number):
        raise InvalidValueError(key, value, "a whole number, one or more")
    if number < 1:
        raise InvalidValueError(key, value, "a whole number, one or more")
    return int(number)


def as_dtype(key: str, value: object) -> DType:
    """A dtype by torch's name.

    Raises:
        InvalidValueError: not text.
        UnknownNameError: no such dtype.
    """
    if not isinstance(value, str):
        raise InvalidValueError(key, value, "the name of a dtype, such as bfloat16")
    return parse_dtype(value)


def as_target_modules(key: str, value: object) -> str | tuple[str, ...]:
    """`optim_target_modules`: a regular expression, "all-linear", or a list of strings.

    Raises:
        InvalidValueError: empty, or of another type.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str) and entry for entry in value):
        return tuple(value)
    raise InvalidValueError(key, value, 'a list of names, a regular expression, or "all-linear"')


def parse_optim_args(text: str) -> dict[str, str]:
    """`optim_args` ("rank=64, update_proj_gap=100") as transformers splits it.

    Source: `_parse_optim_args`, transformers/trainer_optimizer.py, transformers 5.23.

    Raises:
        InvalidValueError: a part without exactly one `=`.
    """
    arguments: dict[str, str] = {}
    for part in text.replace(" ", "").split(",") if text else []:
        key, equals, value = part.partition("=")
        if not key or not equals or "=" in value:
            raise InvalidValueError("optim_args", text, "key=value pairs with commas between them")
        arguments[key] = value
    return arguments


def frozen_options(options: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    """`options` in a form that can be a cache key: sorted pairs, lists as tuples."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(options.items()))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
