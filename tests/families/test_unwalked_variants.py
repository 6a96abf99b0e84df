"""Variants of walked model types that the walk is not equal to the trace for: said to be unsupported, and never said to fit."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.agreement.cases import small_config

FALCON = {"model_type": "falcon", "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2}
DEBERTA = small_config("deberta-v2")


@pytest.mark.parametrize(
    ("model", "keys", "text"),
    [
        ({**FALCON, "alibi": True}, {}, "falcon models with alibi"),
        ({**DEBERTA, "conv_kernel_size": 3}, {}, "deberta-v2 models with a convolution"),
        ({**DEBERTA, "relative_attention": False}, {}, "without relative positions"),
        ({**DEBERTA, "norm_rel_ebd": "none"}, {}, "not normed"),
        ({**DEBERTA, "position_biased_input": True}, {}, "add positions to their input"),
        (DEBERTA, {"activation_checkpointing": "reentrant"}, "reentrant checkpointing of deberta-v2"),
        (DEBERTA, {"task": "sequence-classification"}, "under a sequence-classification head"),
    ],
)
def test_an_unwalked_variant_never_fits(model: dict[str, Any], keys: dict[str, Any], text: str) -> None:
    estimate = memplan.estimate(model=model, micro_batch_size=1, sequence_length=16, gpu="h200", **keys)
    assert any(text in entry for entry in estimate.unsupported)
    assert estimate.verdict("h200").fits != "fits"


@pytest.mark.parametrize("model", [FALCON, DEBERTA])
def test_the_walked_variant_is_supported(model: dict[str, Any]) -> None:
    estimate = memplan.estimate(model=model, micro_batch_size=1, sequence_length=16, gpu="h200")
    assert not estimate.unsupported
