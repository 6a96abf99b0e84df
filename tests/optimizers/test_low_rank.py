"""GaLore and APOLLO: sizes worked out from galore-torch 1.0 and apollo-torch 1.0.3, which CI does not install.

The projection itself (`torch.linalg.svd`, a slice, a cast) is checked against torch.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers.trainer_utils import check_target_module_exists

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.optimizers import Optimizer, ParamInfo, StateBytes, get_optimizer
from memplan.optimizers.low_rank import module_is_targeted

BF16, FP32 = DType.BFLOAT16, DType.FLOAT32


def q_proj(rows: int, columns: int, dtype: DType = BF16) -> ParamInfo:
    return ParamInfo((rows, columns), dtype, "model.layers.0.self_attn.q_proj.weight")


def shapes_of(optimizer: Optimizer, param: ParamInfo) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in optimizer.state_tensors(param)}


@pytest.mark.parametrize("module", ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.down_proj", "lm_head", "q"])
@pytest.mark.parametrize(
    "target", [["q_proj"], ["attn", "mlp"], ["lm_head"], [r".*\.\d+\.mlp.*"], "lm_head", r".*proj", r".*attn.*", ["x"]]
)
def test_targets_are_those_of_transformers(target: list[str] | str, module: str) -> None:
    ours = module_is_targeted(target if isinstance(target, str) else tuple(target), module)
    assert ours == bool(check_target_module_exists(target, module))


@pytest.mark.parametrize("spelling", ["all-linear", "all_linear"])
def test_all_linear_takes_linear_weights_only(spelling: str) -> None:
    optimizer = get_optimizer("galore_adamw", optim_target_modules=spelling, rank=4)
    low = {"projector.ortho_matrix", "exp_avg", "exp_avg_sq"}
    assert shapes_of(optimizer, q_proj(64, 32)).keys() == low
    for param in (
        ParamInfo((64, 32), BF16, "embed_tokens.weight", is_embedding=True),
        ParamInfo((64,), BF16, "norm.weight"),
        ParamInfo((8, 64, 32), BF16, "experts.down_proj"),
        ParamInfo((64, 32), BF16, "c_attn.weight", is_linear=False),
    ):
        assert shapes_of(optimizer, param) == {"exp_avg": param.shape, "exp_avg_sq": param.shape}


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (48, 64), (33, 33)])
def test_galore_projection_keeps_what_torch_keeps(rows: int, columns: int, dtype: DType) -> None:
    rank = 8
    matrix = torch.randn(rows, columns).float()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = right[:rank, :] if rows >= columns else left[:, :rank]
    if dtype == BF16:
        kept = kept.type(torch.bfloat16)
    optimizer = get_optimizer("galore_adamw", optim_target_modules=["q_proj"], rank=rank)
    projection = optimizer.state_tensors(q_proj(rows, columns, dtype))[0]
    assert projection.name == "projector.ortho_matrix"
    assert projection.shape == tuple(kept.shape)
    assert projection.storage_bytes == kept.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("proj_type", "shape", "projection", "low"),
    [
        ("std", (96, 64), (8, 64), (96, 8)),
        ("std", (64, 96), (64, 8), (8, 96)),
        ("reverse_std", (96, 64), (96, 8), (8, 64)),
        ("reverse_std", (64, 96), (8, 96), (64, 8)),
        ("right", (64, 96), (8, 96), (64, 8)),
        ("left", (96, 64), (96, 8), (8, 64)),
    ],
)
def test_galore_sides(
    proj_type: str, shape: tuple[int, int], projection: tuple[int, ...], low: tuple[int, ...]
) -> None:
    optimizer = get_optimizer("galore_adamw", optim_target_modules=["q_proj"], rank=8, proj_type=proj_type)
    assert shapes_of(optimizer, q_proj(*shape)) == {
        "projector.ortho_matrix": projection,
        "exp_avg": low,
        "exp_avg_sq": low,
    }


def test_galore_full_projection_has_two_matrices() -> None:
    optimizer = get_optimizer("galore_adamw", optim_target_modules=["q_proj"], optim_args="rank=8, proj_type=full")
    assert shapes_of(optimizer, q_proj(96, 64)) == {
        "projector.ortho_matrix.0": (96, 8),
        "projector.ortho_matrix.1": (8, 64),
        "exp_avg": (8, 8),
        "exp_avg_sq": (8, 8),
    }


def test_galore_rank_is_cut_to_the_matrix_and_apollos_is_not() -> None:
    galore = get_optimizer("galore_adamw", optim_target_modules=["q_proj"])
    apollo = get_optimizer("apollo_adamw", optim_target_modules=["q_proj"])
    assert shapes_of(galore, q_proj(64, 32))["exp_avg"] == (64, 32)
    assert shapes_of(apollo, q_proj(64, 32)) == {
        "projector.ortho_matrix": (128, 32),
        "exp_avg": (64, 128),
        "exp_avg_sq": (64, 128),
        "scaled_grad": (),
    }


def test_galore_8bit_states_follow_the_low_rank_size() -> None:
    optimizer = get_optimizer("galore_adamw_8bit", optim_target_modules=["q_proj"], rank=16)
    by_name = {tensor.name: tensor for tensor in optimizer.state_tensors(q_proj(1024, 512))}
    assert by_name["state1"].shape == (1024, 16)
    assert by_name["state1"].dtype == DType.UINT8
    assert by_name["absmax2"].shape == (1024 * 16 // 256,)
    assert by_name["unorm_vec"].shape == (1,)
    small = {tensor.name: tensor.dtype for tensor in optimizer.state_tensors(q_proj(200, 100))}
    assert small["state1"] == FP32  # 200 * 16 elements are under 4096, though the parameter is not
    embedding = ParamInfo((1000, 64), BF16, "embed_tokens.weight", is_embedding=True)
    assert optimizer.state_tensors(embedding)[0].dtype == DType.UINT8


def test_layerwise_8bit_has_code_books_for_each_parameter() -> None:
    params = [q_proj(1024, 512)] * 3
    together = get_optimizer("galore_adamw_8bit", optim_target_modules=["q_proj"])
    layerwise = get_optimizer("galore_adamw_8bit_layerwise", optim_target_modules=["q_proj"])
    assert layerwise.updates_in_backward
    assert not together.updates_in_backward
    books = layerwise.state_bytes(params).device_bytes - together.state_bytes(params).device_bytes
    assert books == 2 * 2 * 1024


def test_galore_adafactor_is_float32_throughout() -> None:
    optimizer = get_optimizer("galore_adafactor", optim_target_modules=["q_proj"], rank=8)
    tensors = optimizer.state_tensors(q_proj(96, 64))
    assert {tensor.name: (tensor.shape, tensor.storage_bytes) for tensor in tensors} == {
        "projector.ortho_matrix": ((8, 64), 64 * 64 * 4),
        "exp_avg_sq_row": ((96,), 384),
        "exp_avg_sq_col": ((8,), 32),
        "RMS": ((), 4),
    }


def test_apollo_mini_is_nearly_free() -> None:
    optimizer = get_optimizer("apollo_adamw", optim_target_modules="all-linear", rank=1, scale_type="tensor")
    state = optimizer.state_bytes([q_proj(4096, 4096)])
    assert state == StateBytes(3 * 8192 + 512, 3 * 8192 + 2, 0, 0)


def test_apollo_step_holds_the_scaled_gradient_twice() -> None:
    optimizer = get_optimizer("apollo_adamw", optim_target_modules="all-linear", rank=1, scale_type="tensor")
    one = 4096 * 4096 * 4
    peak = optimizer.step_peak_bytes([q_proj(4096, 4096, FP32)])
    assert 2 * one <= peak <= 2 * one + 3 * 16384
    assert optimizer.step_temporaries == "one_parameter_at_a_time"


def test_what_fails_in_the_library_is_refused() -> None:
    channel = get_optimizer("apollo_adamw", optim_target_modules=["q_proj"], proj_type="left", rank=8)
    with pytest.raises(UnsupportedError, match="channels"):
        channel.state_tensors(q_proj(96, 64))
    with pytest.raises(UnsupportedError, match="full projection"):
        get_optimizer("apollo_adamw", optim_target_modules=["q_proj"], proj_type="full")
    reverse = get_optimizer("galore_adamw", optim_target_modules=["q_proj"], proj_type="reverse_std", rank=64)
    with pytest.raises(UnsupportedError, match="reverse_std"):
        reverse.state_tensors(q_proj(64, 96))
    with pytest.raises(UnsupportedError, match="relative_step"):
        get_optimizer("galore_adafactor_layerwise", optim_target_modules=["q_proj"])


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adamw_8bit", "galore_adafactor"])
def test_the_temporaries_of_an_svd_are_not_guessed(name: str) -> None:
    optimizer = get_optimizer(name, optim_target_modules=["q_proj"])
    assert optimizer.step_temporaries == "unknown"
    with pytest.raises(UnsupportedError, match="temporaries"):
        optimizer.step_events([q_proj(64, 32)])


def test_targets_must_be_given_and_match() -> None:
    with pytest.raises(InvalidValueError, match="needs it"):
        get_optimizer("galore_adamw")
    with pytest.raises(InvalidValueError, match="optim_target_modules"):
        get_optimizer("galore_adamw", optim_target_modules=[])
    nothing = get_optimizer("galore_adamw", optim_target_modules=["c_attn"])
    with pytest.raises(InvalidValueError, match=r"no nn\.Linear"):
        nothing.state_bytes([q_proj(64, 32)])
    broken = get_optimizer("galore_adamw", optim_target_modules="(")
    with pytest.raises(InvalidValueError, match="regular expression"):
        broken.state_tensors(q_proj(64, 32))


def test_rank_128_on_a_7b_layer_saves_what_the_paper_says() -> None:
    param = q_proj(4096, 11008)
    full = get_optimizer("adamw_torch").state_bytes([param]).device_unrounded_bytes
    low = get_optimizer("galore_adamw", optim_target_modules=["q_proj"]).state_bytes([param]).device_unrounded_bytes
    # GaLore, section 4.2: 2nr + mr elements for m <= n, against 2mn.
    assert low == 2 * (2 * 11008 * 128 + 4096 * 128)
    assert math.isclose(full / low, 2 * 4096 * 11008 / (128 * (2 * 11008 + 4096)))
