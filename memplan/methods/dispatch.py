"""Which code applies which PEFT type."""

from __future__ import annotations

from typing import Any

from memplan.errors import UnsupportedError
from memplan.methods import lora
from memplan.methods.adaptation import Adaptation
from memplan.methods.apply import apply_tuner
from memplan.methods.state import ModelState
from memplan.methods.tuner import Tuner

TUNERS: dict[str, Tuner] = {
    "LORA": lora.TUNER,
}


def apply(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """The model under a PEFT method.

    Raises:
        UnsupportedError: no count for the method; the message names it.
    """
    tuner = TUNERS.get(config["peft_type"])
    if tuner is None:
        raise UnsupportedError(f"the method {method} is not covered")
    return apply_tuner(method, tuner, state, config)
