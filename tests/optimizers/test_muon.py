"""Muon against torch.optim.Muon, and what it leaves to AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memplan.dtypes import DType
from memplan.optimizers import ParamInfo, get_optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matrix_states(dtype: torch.dtype, shapes: Any, oracle: Any) -> None:
    parameters = oracle.make_parameters([shape for shape in shapes if len(shape) == 2], dtype)
    real = torch.optim.Muon(parameters)
    real.step()
    for parameter in parameters:
        assert oracle.observe(real.state[parameter]) == oracle.expect(
            get_optimizer("muon").state_tensors(oracle.info_of(parameter)), "cpu"
        )


@pytest.mark.parametrize("nesterov", [True, False])
def test_temporaries(nesterov: bool, oracle: Any) -> None:
    groups, infos = oracle.mixed_groups(ndim=2)
    recorded = oracle.measure_step(torch.optim.Muon(groups, nesterov=nesterov))
    assert get_optimizer("muon", nesterov=nesterov).step_peak_bytes(*infos) == recorded.peak_bytes


@pytest.mark.parametrize(
    "param",
    [
        ParamInfo((300,), DType.FLOAT32),
        ParamInfo((2, 3, 5), DType.FLOAT32),
        ParamInfo((64, 8), DType.FLOAT32, is_embedding=True),
        ParamInfo((64, 8), DType.FLOAT32, name="lm_head.weight"),
    ],
)
def test_the_rest_goes_to_adamw(param: ParamInfo) -> None:
    assert get_optimizer("muon").state_tensors(param) == get_optimizer("adamw_torch").state_tensors(param)
    if len(param.shape) != 2:
        with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
            torch.optim.Muon([torch.nn.Parameter(torch.zeros(param.shape))])


def test_adamws_list_comes_after_muons_loop() -> None:
    matrix, vector = ParamInfo((64, 64), DType.BFLOAT16), ParamInfo((100_000,), DType.BFLOAT16)
    muon = get_optimizer("muon")
    assert muon.step_peak_bytes([matrix, vector]) == max(
        muon.step_peak_bytes([matrix]), get_optimizer("adamw_torch").step_peak_bytes([vector])
    )
