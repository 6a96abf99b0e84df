"""What contradicts an optimizer that steps inside backward is refused, with the key that does."""

from __future__ import annotations

from typing import Any

import pytest

from memplan import estimate
from memplan.errors import InvalidValueError
from memplan.estimate import Fits
from memplan.recipe import Recipe
from memplan.resolve import resolve

MODEL = "meta-llama/Llama-3.2-1B"
FLOAT16 = {"precision": "amp", "autocast_dtype": "float16"}
LAYERWISE = {"optim": "galore_adamw_layerwise", "optim_target_modules": "all-linear"}


@pytest.mark.parametrize(("keys", "key", "text"), [
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "torchtune refuses it"),
    ({"max_grad_norm": 1.0}, "max_grad_norm", "torchtune refuses it"),
    (FLOAT16, "autocast_dtype", "no scaler"),
    ({"optim": "lomo"}, "optimizer_in_backward", "by itself"),
    ({"optim": "muon"}, "optim", "of torch or bitsandbytes"),
    ({"optim": "schedule_free_adamw"}, "optim", "of torch or bitsandbytes"),
    ({"optimizer_in_backward": None, "optim": "lomo", **FLOAT16}, "autocast_dtype", "TypeError"),
    ({"optimizer_in_backward": None, "optim": "adalomo", **FLOAT16}, "autocast_dtype", "TypeError"),
    ({"optimizer_in_backward": None, **LAYERWISE, **FLOAT16}, "autocast_dtype", "AssertionError"),
    ({"optimizer_in_backward": None, **LAYERWISE, "gradient_accumulation_steps": 4}, "gradient_accumulation_steps",
     "layer-wise"),
])  # fmt: skip
def test_contradictions(keys: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(InvalidValueError, match=text) as caught:
        resolve(Recipe(**{"model": MODEL, "optimizer_in_backward": True, **keys}))
    assert caught.value.message.startswith(key)


def test_clipping_is_off_where_nothing_is_left_to_clip() -> None:
    resolved = resolve(Recipe(model=MODEL, optimizer_in_backward=True))
    assert resolved["max_grad_norm"] == 0
    assert resolved.sources["max_grad_norm"].startswith("optimizer_in_backward")
    assert resolve(Recipe(model=MODEL, optimizer_in_backward=False))["max_grad_norm"] == 1
    assert "optimizer_in_backward" not in resolve(Recipe(model=MODEL)).values


@pytest.mark.parametrize("keys", [
    {**LAYERWISE},
    {"optim": "apollo_adamw_layerwise", "optim_target_modules": "all-linear"},
    {"optim": "adalomo", "model": "mistralai/Mixtral-8x7B-v0.1"},
    {"optim": "lomo", "dtype": "float16", "precision": "pure", "task": "sequence-classification"},
])  # fmt: skip
def test_what_no_trace_confirms_never_fits(keys: dict[str, Any]) -> None:
    answer = estimate(**{"model": MODEL, "gpu": "b200", **keys})
    assert answer.unsupported
    assert answer.verdict().fits is not Fits.FITS
