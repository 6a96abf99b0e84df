"""Which code applies which PEFT type, and which types have no count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memplan.errors import UnsupportedError
from memplan.methods import copies, elementwise, lora, low_rank, lycoris, orthogonal, prompts, shared
from memplan.methods.adaptation import Adaptation
from memplan.methods.apply import apply_tuner
from memplan.methods.state import ModelState
from memplan.methods.tuner import Tuner

TUNERS: dict[str, Tuner] = {
    "ADALORA": low_rank.ADALORA,
    "BEFT": elementwise.BEFT,
    "BOFT": orthogonal.BOFT,
    "C3A": elementwise.C3A,
    "DEFT": low_rank.DEFT,
    "DELORA": low_rank.DELORA,
    "FOURIERFT": elementwise.FOURIERFT,
    "FROD": shared.FROD,
    "GLORA": low_rank.GLORA,
    "GRALORA": low_rank.GRALORA,
    "HIRA": low_rank.HIRA,
    "HRA": orthogonal.HRA,
    "IA3": elementwise.IA3,
    "LILY": low_rank.LILY,
    "LOHA": lycoris.LOHA,
    "LOKR": lycoris.LOKR,
    "LORA": lora.TUNER,
    "MISS": elementwise.MISS,
    "OFT": orthogonal.OFT,
    "OSF": elementwise.OSF,
    "PEANUT": low_rank.PEANUT,
    "POLY": low_rank.POLY,
    "PSOFT": orthogonal.PSOFT,
    "PVERA": shared.PVERA,
    "RANDLORA": shared.RANDLORA,
    "ROAD": orthogonal.ROAD,
    "SHIRA": elementwise.SHIRA,
    "SUPERTUNING": elementwise.SUPERTUNING,
    "TINYLORA": shared.TINYLORA,
    "UNILORA": shared.UNILORA,
    "VBLORA": shared.VBLORA,
    "VERA": shared.VERA,
    "WAVEFT": elementwise.WAVEFT,
}

_OTHERS: dict[str, Callable[[str, ModelState, dict[str, Any]], Adaptation]] = {
    "ADAPTION_PROMPT": copies.adaption_prompt,
    "LN_TUNING": copies.ln_tuning,
    "TRAINABLE_TOKENS": copies.trainable_tokens,
    **dict.fromkeys(prompts.ENCODERS, prompts.apply_prompts),
}

NOT_COVERED: dict[str, str] = {
    "ADAMSS": "its subspaces come from clustering the weights, so that their sizes depend on values",
    "SHADOW": "it adds a second transformer",
    "XLORA": "it routes between adapters that are trained already, which the config only names",
}


def apply(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """The model under a PEFT method.

    Raises:
        UnsupportedError: no count for the method; the message names it and says why.
    """
    peft_type = config["peft_type"]
    if peft_type in NOT_COVERED:
        raise UnsupportedError(f"the method {method} is not covered", hint=NOT_COVERED[peft_type])
    if peft_type in TUNERS:
        return apply_tuner(method, TUNERS[peft_type], state, config)
    return _OTHERS[peft_type](method, state, config)
