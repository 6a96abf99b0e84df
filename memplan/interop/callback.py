"""A callback for transformers' Trainer that compares the prediction with what torch.cuda reports.

    trainer.add_callback(memplan.interop.trainer_callback(sequence_length=2048))

transformers is imported by the first call and never by reading or writing configs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memplan.errors import MemplanError, UnavailableError
from memplan.interop.objects import read_objects
from memplan.units import format_bytes

if TYPE_CHECKING:
    from memplan.estimate import Estimate
    from memplan.recipe import Recipe


def trainer_callback(
    recipe: Recipe | None = None,
    *,
    sequence_length: int | None = None,
    steps: int = 2,
    write: Callable[[str], object] = print,
) -> Any:
    """A `transformers.TrainerCallback` that reports once, at the end of step `steps`.

    Args:
        recipe: what is predicted; by default it is read from the trainer's model and arguments.
        sequence_length: tokens of the longest sequence; a Trainer does not know it. With a `recipe` it replaces its own.
        steps: optimizer steps to wait for; optimizer states exist from the second on.
        write: takes the report.

    Raises:
        UnavailableError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise UnavailableError("the callback needs transformers", hint="pip install transformers") from None

    class MemoryCallback(TrainerCallback):  # type: ignore[misc]
        """Predicts when training begins, compares when the first steps are done."""

        def __init__(self) -> None:
            self.estimate: Estimate | None = None
            self.problem = ""
            self.done = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Predict from the model and the arguments."""
            try:
                self.estimate = _predict(recipe, args, kwargs.get("model"), sequence_length)
            except MemplanError as error:  # a report must not end a training run
                self.problem = str(error)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Compare once."""
            if self.done or state.global_step < steps:
                return
            self.done = True
            if getattr(state, "is_world_process_zero", True):
                if self.estimate is None:
                    write(f"memplan: no prediction: {self.problem}")
                else:
                    write(comparison(self.estimate, measured(kwargs.get("model")), steps))

    return MemoryCallback()


def _predict(recipe: Recipe | None, args: Any, model: Any, sequence_length: int | None) -> Estimate:
    from memplan.engine import estimate

    changes = {} if sequence_length is None else {"sequence_length": sequence_length}
    if recipe is not None:
        return estimate(recipe.replace(**changes) if changes else recipe)
    adapters = getattr(model, "peft_config", None) or {}
    reading = read_objects(
        model_config=getattr(model, "config", None),
        training_args=args,
        peft_config=next(iter(adapters.values()), None),
    )
    return reading.estimate(**changes)


def measured(model: Any) -> dict[str, int] | None:
    """Peaks that torch.cuda has counted in this process so far; None where the model is not on a CUDA GPU.

    `device` is what is in use on the card now, by every process.
    """
    import torch

    device = getattr(model, "device", None)
    if not torch.cuda.is_available() or getattr(device, "type", "") != "cuda":
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return {
        "allocated": int(torch.cuda.max_memory_allocated(device)),
        "reserved": int(torch.cuda.max_memory_reserved(device)),
        "device": int(total_bytes - free_bytes),
    }


def comparison(estimate: Estimate, reality: dict[str, int] | None, steps: int) -> str:
    """Prediction beside reality, in a few lines of text."""
    peak = estimate.peak
    predicted = {"allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes, "device": peak.device_bytes}
    lines = [
        f"memplan: memory after {steps} steps",
        f"  {'':<10}{'predicted':>14}" + (f"{'measured':>14}{'error':>9}" if reality else ""),
    ]
    for level, expected in predicted.items():
        line = f"  {level:<10}{format_bytes(expected):>14}"
        if reality:
            line += f"{format_bytes(reality[level]):>14}{(expected - reality[level]) / max(reality[level], 1):>+9.1%}"
        lines.append(line)
    if reality is None:
        lines.append("  the model is not on a CUDA GPU: there is nothing to compare the prediction with")
    lines += [f"  not covered: {text}" for text in estimate.unsupported]
    return "\n".join(lines)
