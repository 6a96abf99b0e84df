"""bitsandbytes against the real classes: real steps on the CPU, placement on a fake CUDA device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes
    from bitsandbytes import functional
    from bitsandbytes.optim import GlobalOptimManager

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer

OPTIM = bitsandbytes.optim

# The calls of transformers/trainer_optimizer.py, _get_bitsandbytes_optimizer.
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("adamw_bnb_8bit", OPTIM.AdamW, {"optim_bits": 8, "is_paged": False}),
    ("adamw_8bit", OPTIM.AdamW, {"optim_bits": 8, "is_paged": False}),
    ("ademamix", OPTIM.AdEMAMix, {"optim_bits": 32, "is_paged": False}),
    ("ademamix_8bit", OPTIM.AdEMAMix, {"optim_bits": 8, "is_paged": False}),
    ("lion_8bit", OPTIM.Lion, {"optim_bits": 8, "is_paged": False}),
    ("lion_32bit", OPTIM.Lion, {"optim_bits": 32, "is_paged": False}),
    ("paged_adamw_32bit", OPTIM.AdamW, {"optim_bits": 32, "is_paged": True}),
    ("paged_adamw_8bit", OPTIM.AdamW, {"optim_bits": 8, "is_paged": True}),
    ("paged_ademamix_32bit", OPTIM.AdEMAMix, {"optim_bits": 32, "is_paged": True}),
    ("paged_ademamix_8bit", OPTIM.AdEMAMix, {"optim_bits": 8, "is_paged": True}),
    ("paged_lion_32bit", OPTIM.Lion, {"optim_bits": 32, "is_paged": True}),
    ("paged_lion_8bit", OPTIM.Lion, {"optim_bits": 8, "is_paged": True}),
    ("rmsprop_bnb", OPTIM.RMSprop, {"optim_bits": 32}),
    ("rmsprop_bnb_8bit", OPTIM.RMSprop, {"optim_bits": 8}),
    ("rmsprop_bnb_32bit", OPTIM.RMSprop, {"optim_bits": 32}),
    ("adam_8bit", OPTIM.Adam8bit, {}),
    ("paged_adam_8bit", OPTIM.PagedAdam8bit, {}),
    ("paged_adam_32bit", OPTIM.PagedAdam32bit, {}),
]


@pytest.fixture(autouse=True)
def fresh_manager() -> Iterator[None]:
    """bitsandbytes keeps overrides in a singleton, by `id` of the parameter."""
    GlobalOptimManager.get_instance().initialize()
    yield
    GlobalOptimManager.get_instance().initialize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "cls", "arguments"), CASES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_after_a_real_step(
    name: str, cls: Any, arguments: dict[str, Any], dtype: torch.dtype, shapes: Any, oracle: Any
) -> None:
    # AdEMAMix has no fallback for pages on a CPU, so its largest parameter is left to the test of placement.
    limit = 100_000 if name.startswith("paged_ademamix") else 10**9
    parameters = oracle.make_parameters([shape for shape in shapes if math.prod(shape) < limit], dtype)
    real = cls(parameters, lr=0.01, **arguments)
    ours = get_optimizer(name)
    real.step()
    for parameter in parameters:
        tensors = ours.state_tensors(oracle.info_of(parameter))
        expected = [tensor._replace(placement="device") for tensor in tensors]  # no paging on a CPU
        assert oracle.observe(real.state[parameter]) == oracle.expect(expected, "cpu")


@pytest.mark.parametrize(("name", "cls", "arguments"), CASES)
def test_placement_on_a_gpu(
    name: str,
    cls: Any,
    arguments: dict[str, Any],
    shapes: Any,
    oracle: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = cls(oracle.make_parameters([(2,)], torch.float32), lr=0.01, **arguments)
    request.getfixturevalue("fake_cuda")

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        buffer = torch.empty(shape, dtype=dtype, device="cpu")  # managed memory is a CPU tensor to torch
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    monkeypatch.setattr(functional, "get_paged", get_paged)
    monkeypatch.setattr(functional, "fill", lambda *_: None)
    ours = get_optimizer(name)
    for parameter in oracle.make_parameters(shapes, torch.bfloat16, "cuda"):
        real.param_groups[0]["params"] = [parameter]
        real.init_state(real.param_groups[0], parameter, 0, 0)
        placements = {
            key: "paged" if getattr(value, "is_paged", False) else {"cuda": "device", "cpu": "host"}[value.device.type]
            for key, value in real.state[parameter].items()
            if isinstance(value, torch.Tensor)
        }
        tensors = ours.state_tensors(oracle.info_of(parameter))
        assert placements == {tensor.name: tensor.placement for tensor in tensors}


def test_code_books_are_one_per_optimizer(oracle: Any) -> None:
    parameters = oracle.make_parameters([(64, 64), (17, 257)], torch.float32)
    real = OPTIM.AdamW(parameters, lr=0.01, optim_bits=8)
    real.step()
    for key in ("qmap1", "qmap2"):
        assert len({real.state[parameter][key].data_ptr() for parameter in parameters}) == 1
    one = get_optimizer("adamw_8bit").state_bytes([ParamInfo((64, 64), DType.FLOAT32)])
    two = get_optimizer("adamw_8bit").state_bytes([ParamInfo((64, 64), DType.FLOAT32)] * 2)
    assert two.device_bytes - one.device_bytes == one.device_bytes - 2 * 1024


def test_the_trainer_keeps_embeddings_in_32_bits(oracle: Any) -> None:
    embedding = torch.nn.Embedding(64, 65)
    embedding.weight.grad = torch.ones_like(embedding.weight)
    real = OPTIM.AdamW(embedding.parameters(), lr=0.01, optim_bits=8)
    GlobalOptimManager.get_instance().register_module_override(embedding, "weight", {"optim_bits": 32})
    real.step()
    info = oracle.info_of(embedding.weight, is_embedding=True)
    observed = oracle.observe(real.state[embedding.weight])
    assert observed == oracle.expect(get_optimizer("adamw_bnb_8bit").state_tensors(info), "cpu")
    without_trainer = get_optimizer("adamw_bnb_8bit", embeddings_32bit=False).state_tensors(info)
    assert [tensor.dtype for tensor in without_trainer[:2]] == [DType.UINT8, DType.UINT8]


def test_adams_name_is_unknown_to_the_trainer_and_so_is_its_override() -> None:
    info = ParamInfo((64, 65), DType.BFLOAT16, is_embedding=True)
    assert get_optimizer("adam_8bit").state_tensors(info)[0].dtype == DType.UINT8
    assert get_optimizer("adamw_8bit").state_tensors(info)[0].dtype == DType.FLOAT32


def test_a_large_embedding_of_a_paged_optimizer_is_paged_in_32_bits() -> None:
    info = ParamInfo((32000, 4096), DType.BFLOAT16, is_embedding=True)
    assert get_optimizer("paged_adamw_8bit").state_bytes([info]) == StateBytes(0, 0, 0, 32000 * 4096 * 8)


def test_a_layer_in_8_bits() -> None:
    elements = 4096 * 4096
    state = get_optimizer("adamw_8bit").state_bytes([ParamInfo((4096, 4096), DType.BFLOAT16)])
    assert state.device_unrounded_bytes == 2 * elements + 2 * 4 * elements // 256 + 2 * 1024


def test_steps_borrow_nothing() -> None:
    assert get_optimizer("paged_adamw_8bit").step_events([ParamInfo((64, 64), DType.BFLOAT16)]) == ()


def test_min_8bit_size(oracle: Any) -> None:
    (parameter,) = oracle.make_parameters([(7, 9)], torch.float32)
    real = OPTIM.AdamW([parameter], lr=0.01, optim_bits=8, min_8bit_size=63)
    real.step()
    ours = get_optimizer("adamw_8bit", min_8bit_size=63)
    assert oracle.observe(real.state[parameter]) == oracle.expect(ours.state_tensors(oracle.info_of(parameter)), "cpu")
    with pytest.raises(InvalidValueError, match="min_8bit_size"):
        get_optimizer("adamw_8bit", min_8bit_size=0)
