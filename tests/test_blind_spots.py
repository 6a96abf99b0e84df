"""What walk and trace are known to miss keeps `fits` away; no record shows them missing anything else beyond the bound."""

from __future__ import annotations

import pytest

from memplan.blind_spots import blind_spots
from memplan.estimate import Fits
from memplan.evidence.scoring import score
from memplan.quantization import Scheme


@pytest.mark.parametrize(
    ("method", "model_type", "scheme", "peft", "count"),
    [
        ("lora", "llama", None, {"r": 8}, 0),
        ("qlora", "llama", Scheme.NF4, {}, 0),
        ("adalora", "llama", Scheme.NF4, {}, 1),
        ("lora", "gpt_bigcode", None, {}, 0),
        ("qlora", "gpt_bigcode", Scheme.NF4, {}, 1),
        ("lora", "llama", Scheme.INT8, {}, 1),
        ("fourierft", "gpt_bigcode", Scheme.INT8, {}, 3),
        ("p_tuning", "llama", None, {"encoder_reparameterization_type": "LSTM"}, 1),
        ("p_tuning", "llama", None, {"encoder_reparameterization_type": "MLP"}, 0),
    ],
)
def test_known_ones(method: str, model_type: str, scheme: Scheme | None, peft: dict[str, object], count: int) -> None:
    assert len(blind_spots(method, model_type, scheme, peft)) == count


def test_no_trace_of_a_record_says_fits_wrongly() -> None:
    judged = score(engine="trace").judged
    beyond = [entry for entry in judged if entry.upper_held is False]
    assert len(judged) > 100
    assert beyond
    assert {entry.fits for entry in beyond} == {Fits.UNCERTAIN}
    assert [entry.record.id for entry in judged if entry.wrong_fits] == []
