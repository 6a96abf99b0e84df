"""The choice of the attention kernel against the rules of sdp_utils.cpp, case by case."""

from __future__ import annotations

import pytest
import torch

from memplan.trace.attention import AttentionChooser, _aligned_mask
from memplan.trace.spec import AttentionBackend, GpuArch

FLASH, EFFICIENT, MATH, CUDNN = (
    AttentionBackend.FLASH, AttentionBackend.EFFICIENT, AttentionBackend.MATH, AttentionBackend.CUDNN,
)  # fmt: skip


def _tensor(heads: int, head_dim: int, dtype: torch.dtype, *, grad: bool = True, length: int = 64) -> torch.Tensor:
    return torch.empty(2, heads, length, head_dim, dtype=dtype, device="meta", requires_grad=grad)


@pytest.mark.parametrize(
    ("arch", "dtype", "key_heads", "head_dim", "masked", "expected"),
    [
        ("sm80", torch.bfloat16, 8, 128, False, FLASH),
        ("sm80", torch.bfloat16, 2, 128, False, FLASH),
        ("sm80", torch.bfloat16, 8, 128, True, EFFICIENT),
        ("sm80", torch.bfloat16, 2, 128, True, MATH),
        ("sm80", torch.float32, 8, 128, False, EFFICIENT),
        ("sm80", torch.float32, 2, 128, False, MATH),
        ("sm80", torch.float32, 8, 66, False, MATH),
        ("sm80", torch.float16, 8, 512, False, EFFICIENT),
        ("sm75", torch.float16, 8, 128, False, EFFICIENT),
        ("sm75", torch.float16, 2, 128, False, MATH),
        ("sm75", torch.bfloat16, 8, 128, False, MATH),
        ("sm86", torch.bfloat16, 8, 224, False, EFFICIENT),
        ("sm86", torch.bfloat16, 8, 256, False, FLASH),
        ("sm89", torch.bfloat16, 8, 192, False, FLASH),
        ("sm120", torch.bfloat16, 8, 224, False, EFFICIENT),
        ("sm90", torch.bfloat16, 2, 128, False, CUDNN),
        ("sm90", torch.bfloat16, 2, 128, True, CUDNN),
        ("sm90", torch.bfloat16, 2, 256, False, FLASH),
        ("sm90", torch.float32, 8, 128, False, EFFICIENT),
    ],
)
def test_choice(
    arch: str, dtype: torch.dtype, key_heads: int, head_dim: int, masked: bool, expected: AttentionBackend
) -> None:
    chooser = AttentionChooser(GpuArch(arch), AttentionBackend.AUTO)
    chooser.efficient_supports_gqa = False
    query = _tensor(8, head_dim, dtype)
    key = _tensor(key_heads, head_dim, dtype)
    mask = torch.empty(2, 1, 64, 64, dtype=torch.bool, device="meta") if masked else None
    assert chooser.choose(query, key, key, mask, 0.0, not masked) is expected


def test_grouped_heads_in_the_efficient_kernel_depend_on_the_version() -> None:
    chooser = AttentionChooser(GpuArch.SM80, AttentionBackend.AUTO)
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert chooser.efficient_supports_gqa == ((major, minor) >= (2, 14))


def test_causal_flash_needs_square_attention() -> None:
    chooser = AttentionChooser(GpuArch.SM80, AttentionBackend.AUTO)
    query, key = _tensor(8, 64, torch.bfloat16, length=32), _tensor(8, 64, torch.bfloat16)
    assert chooser.choose(query, key, key, None, 0.0, True) is EFFICIENT
    assert chooser.choose(query, key, key, None, 0.0, False) is FLASH


def test_masks_are_padded_before_they_are_spread_over_heads() -> None:
    query = _tensor(8, 64, torch.bfloat16)
    odd = torch.empty(2, 1, 64, 69, dtype=torch.bfloat16, device="meta")
    key = _tensor(8, 64, torch.bfloat16, length=69)
    padded = _aligned_mask(odd, query, key)
    assert padded.shape == (2, 8, 64, 69)
    assert padded.stride() == (64 * 72, 0, 72, 1)
    assert padded.untyped_storage().nbytes() == 2 * 64 * 72 * 2
    even = torch.empty(2, 1, 64, 64, dtype=torch.bfloat16, device="meta")
    kept = _aligned_mask(even, query, query)
    assert kept.stride() == (64 * 64, 0, 64, 1)
