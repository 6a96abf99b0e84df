"""Both Adafactors against the real classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer
from memplan.step.optimizer_step import step_events

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def real_adafactor(parameters: Any) -> Any:
    """As the Trainer makes it."""
    return Adafactor(parameters, lr=0.01, scale_parameter=False, relative_step=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transformers_states(dtype: torch.dtype, shapes: Any, oracle: Any) -> None:
    parameters = oracle.make_parameters(shapes, dtype)
    real = real_adafactor(parameters)
    ours = get_optimizer("adafactor")
    real.step()
    for parameter in parameters:
        assert oracle.observe(real.state[parameter]) == oracle.expect(
            ours.state_tensors(oracle.info_of(parameter)), "cpu"
        )


def test_transformers_keeps_all_state_on_the_device(shapes: Any, oracle: Any, fake_cuda: None) -> None:
    parameters = oracle.make_parameters(shapes, torch.float32, "cuda")
    real = real_adafactor(parameters)
    real.step()
    for parameter in parameters:
        tensors = get_optimizer("adafactor").state_tensors(oracle.info_of(parameter))
        assert oracle.observe(real.state[parameter]) == oracle.expect(tensors, "cuda")


def test_transformers_temporaries(oracle: Any) -> None:
    groups, infos = oracle.mixed_groups()
    recorded = oracle.measure_step(real_adafactor(groups))
    assert get_optimizer("adafactor").step_peak_bytes(*infos) == recorded.peak_bytes


def test_transformers_states_are_made_in_each_turn_of_the_loop() -> None:
    matrix, vector = ParamInfo((640, 384), DType.FLOAT32), ParamInfo((640,), DType.FLOAT32)
    events = step_events(get_optimizer("adafactor"), [[matrix, vector], [vector]])
    states = [place for place, event in enumerate(events) if event.once]
    assert [events[place].blocks for place in states] == [((2560, 1), (1536, 1), (512, 1))] + [
        ((2560, 1), (512, 1))
    ] * 2
    assert states[0] == 0
    # The first turn's update is there until the second turn has one, which finds its states made.
    alive = sum(event.change_bytes for event in events[: states[1]] if not event.once)
    assert alive == 4 * 640 * 384


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_states(dtype: torch.dtype, foreach: bool, shapes: Any, oracle: Any) -> None:
    parameters = oracle.make_parameters(shapes, dtype)
    real = torch.optim.Adafactor(parameters, foreach=foreach)
    ours = get_optimizer("adafactor_torch", implementation="foreach" if foreach else "for_loop")
    real.step()
    for parameter in parameters:
        assert oracle.observe(real.state[parameter]) == oracle.expect(
            ours.state_tensors(oracle.info_of(parameter)), "cpu"
        )


@pytest.mark.parametrize("foreach", [False, True])
def test_torch_temporaries(foreach: bool, oracle: Any) -> None:
    groups, infos = oracle.mixed_groups()
    recorded = oracle.measure_step(torch.optim.Adafactor(groups, foreach=foreach))
    ours = get_optimizer("adafactor_torch", implementation="foreach" if foreach else "for_loop")
    assert ours.step_peak_bytes(*infos) == recorded.peak_bytes


def test_torch_keeps_the_step_on_the_host() -> None:
    tensors = get_optimizer("adafactor_torch").state_tensors(ParamInfo((2, 3), DType.FLOAT32))
    assert [(tensor.name, tensor.placement) for tensor in tensors if tensor.placement != "device"] == [("step", "host")]


def test_a_matrix_costs_a_row_a_column_and_a_norm() -> None:
    state = get_optimizer("adafactor").state_bytes([ParamInfo((4096, 14336), DType.BFLOAT16)])
    assert state == StateBytes((4096 + 14336) * 4 + 512, (4096 + 14336) * 4 + 4, 0, 0)


def test_torch_has_no_fused_adafactor() -> None:
    with pytest.raises(InvalidValueError, match="foreach and for_loop"):
        get_optimizer("adafactor_torch", implementation="fused")
