"""What contradicts an optimizer that steps inside backward: gradients are gone before anything could add to them or clip them.

Sources: torchtune 0.6.1 recipes/full_finetune_single_device.py (`optimizer_in_bwd`); transformers 5.23 trainer_optimizer.py,
`_setup_low_rank_optimizer`; accelerate 1.15 accelerator.py, `backward` and `lomo_backward`; lomo-optim 0.1.1.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.filler import Filler
from memplan.optimizers.catalog import OptimizerRow, optimizer_rows

# Rules by which a parameter's own optimizer does what one for all does with it.
_ONE_FOR_EACH = frozenset({"adafactor", "adagrad", "adam", "bitsandbytes", "rmsprop", "sgd"})

# Says whose default `max_grad_norm` is where gradients are dropped inside backward.
WITHOUT_CLIPPING = (0.0, "optimizer_in_backward: gradients are gone before they could be clipped")


def check_in_backward(filler: Filler, autocast: DType | None) -> None:
    """Refuse what the libraries refuse, or do not do, with an optimizer that steps inside backward.

    Raises:
        InvalidValueError: says which key contradicts it.
    """
    row = optimizer_rows().get(str(filler.values["optim"]))
    if filler.values.get("optimizer_in_backward"):
        _check_one_for_each(filler, row, autocast)
    elif row is not None and row.updates_in_backward:
        _check_named(filler, row, autocast)


def _check_one_for_each(filler: Filler, row: OptimizerRow | None, autocast: DType | None) -> None:
    values = filler.values
    if row is not None and row.updates_in_backward:
        raise InvalidValueError(
            "optimizer_in_backward", True, f"{row.name} steps inside backward by itself", hint="leave it out"
        )
    if row is not None and row.layout not in _ONE_FOR_EACH:
        raise InvalidValueError(
            "optim",
            row.name,
            "with optimizer_in_backward an optimizer of torch or bitsandbytes, or transformers' Adafactor",
        )
    if values["gradient_accumulation_steps"] > 1:
        raise InvalidValueError(
            "gradient_accumulation_steps",
            values["gradient_accumulation_steps"],
            "1 with optimizer_in_backward: gradients are gone when the next micro-batch comes (torchtune refuses it)",
        )
    if values["max_grad_norm"]:
        raise InvalidValueError(
            "max_grad_norm",
            values["max_grad_norm"],
            "0 with optimizer_in_backward: gradients are gone before their norm is known (torchtune refuses it)",
        )
    if autocast is DType.FLOAT16:
        raise InvalidValueError(
            "autocast_dtype",
            "float16",
            "bfloat16 with optimizer_in_backward: no scaler unscales gradients inside backward",
        )


def _check_named(filler: Filler, row: OptimizerRow, autocast: DType | None) -> None:
    values = filler.values
    is_lomo = row.layout in ("lomo", "adalomo")
    if values["gradient_accumulation_steps"] > 1 and not is_lomo:
        raise InvalidValueError(
            "gradient_accumulation_steps",
            values["gradient_accumulation_steps"],
            f"1 with {row.name}: transformers refuses more with layer-wise optimizers",
        )
    if autocast is DType.FLOAT16:
        reason = (
            "accelerate hands its learning rate to Tensor.backward there, which raises a TypeError"
            if is_lomo
            else "GradScaler finds no gradients after backward, and raises an AssertionError"
        )
        raise InvalidValueError("autocast_dtype", "float16", f"bfloat16 with {row.name}: {reason}")
