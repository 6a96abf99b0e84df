"""Element types against torch's own."""

from __future__ import annotations

import pytest
import torch

from memplan.dtypes import DType, parse_dtype
from memplan.errors import UnknownNameError


@pytest.mark.parametrize("dtype", DType)
def test_width_and_name_are_torchs(dtype: DType) -> None:
    real = getattr(torch, dtype.value)
    assert isinstance(real, torch.dtype)
    assert dtype.itemsize_bytes == real.itemsize
    assert str(real) == f"torch.{dtype}"


@pytest.mark.parametrize("dtype", DType)
def test_half_types_are_the_16_bit_floating_ones(dtype: DType) -> None:
    real = getattr(torch, dtype.value)
    assert dtype.is_half == (real.is_floating_point and real.itemsize == 2)


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("form", ["{}", "torch.{}"])
def test_every_dtype_by_its_name(dtype: DType, form: str) -> None:
    assert parse_dtype(form.format(dtype)) is dtype
    assert parse_dtype(form.format(dtype.value.upper())) is dtype


@pytest.mark.parametrize(("alias", "name"), [
    ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"), ("float", "float32"),
    ("f32", "float32"), ("fp64", "float64"), ("double", "float64"), ("BF16", "bfloat16"), ("torch.half", "float16"),
])  # fmt: skip
def test_short_forms(alias: str, name: str) -> None:
    assert parse_dtype(alias).value == name


@pytest.mark.parametrize("alias", ["half", "float", "double"])
def test_torch_has_the_same_short_forms(alias: str) -> None:
    assert str(getattr(torch, alias)) == f"torch.{parse_dtype(alias)}"


@pytest.mark.parametrize("text", ["", "bf", "bfloat61", "torch.torch.float32", "int4", "nf4", "float32 "])
def test_other_names_are_refused_with_all_that_is_allowed(text: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_dtype(text)
    assert str(caught.value).startswith(f"unknown dtype {text!r}")
    assert "bfloat16" in caught.value.hint
