"""GPUs for a recipe: smallest, cheapest, all; and reading prices."""

from __future__ import annotations

from pathlib import Path

import pytest

import memplan
from memplan.catalog.gpus import list_gpus
from memplan.errors import FileFormatError, InvalidValueError, MemplanError, UnknownNameError
from memplan.estimate import Fits
from memplan.planner import gpus_for, plan
from memplan.planner.hardware import read_prices
from memplan.recipe import Recipe
from tests.planner.small import FULL

BIG = {**FULL, "micro_batch_size": 24}


def test_every_gpu_that_fits_is_listed_and_no_other() -> None:
    found = gpus_for(Recipe(**BIG))
    expected = set()
    for gpu in list_gpus():
        try:
            if memplan.estimate(**BIG, gpu=gpu.id).verdict().fits is Fits.FITS:
                expected.add(gpu.id)
        except MemplanError:
            continue
    assert {option.gpu for option in found} == expected
    sizes = [option.usable_bytes for option in found]
    assert sizes == sorted(sizes)
    assert 5 < len(found) < len(list_gpus())


def test_a_gpu_whose_kernels_are_not_covered_is_never_proposed() -> None:
    amd = {gpu.id for gpu in list_gpus() if gpu.vendor == "AMD"}
    assert amd
    assert not amd & {option.gpu for option in gpus_for(Recipe(**FULL))}


def test_the_cheapest_is_by_the_users_prices() -> None:
    prices = {"RTX 4090": 0.4, "h100": 2.5, "t4": 0.1, "a100-80gb": 0.4}
    found = gpus_for(Recipe(**BIG), prices)
    assert [option.gpu for option in found] == ["a100-80gb", "rtx-4090", "h100-sxm-80gb"]  # the T4 is too small
    assert [option.price for option in found] == [0.4, 0.4, 2.5]


def test_a_plan_names_the_smallest_and_the_cheapest() -> None:
    every = gpus_for(Recipe(**BIG))
    found = plan(**BIG, gpu="t4", max_changes=1, prices={"h100": 1.0, "b200": 5.0})
    assert [option.gpu for option in found.gpus] == ["h100-sxm-80gb", every[0].gpu]
    alone = plan(**BIG, gpu="t4", max_changes=1)
    assert [option.gpu for option in alone.gpus] == [every[0].gpu]
    assert plan(**BIG, gpu="t4", max_changes=1, keep=["gpu"]).gpus == ()


def test_prices_are_read(tmp_path: Path) -> None:
    assert read_prices("rtx-4090=0.35, h100=2.5") == {"rtx-4090": 0.35, "h100-sxm-80gb": 2.5}
    file = tmp_path / "prices.toml"
    file.write_text("rtx-4090 = 0.35\nh100 = 2\n")
    assert read_prices(str(file)) == {"rtx-4090": 0.35, "h100-sxm-80gb": 2.0}
    file.write_text("[prices]\nt4 = 0.1\n")
    assert read_prices(str(file)) == {"t4": 0.1}


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("rtx-4091=1", UnknownNameError, "rtx-4090"),
        ("t4=cheap", InvalidValueError, "cheap"),
        ("t4=0", InvalidValueError, "above 0"),
        ("t4=inf", InvalidValueError, "above 0"),
        ("t4=1,T4=2", InvalidValueError, "one price"),
        ("t4=1,", UnknownNameError, "''"),
        ("nowhere.toml", FileFormatError, "no such file"),
    ],
)
def test_wrong_prices_are_named(text: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error) as caught:
        read_prices(text)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", ["t4 = ", "", 'prices = "1"', "t4 = true", "[t4]\nx = 1"])
def test_wrong_price_files_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(content)
    with pytest.raises((FileFormatError, InvalidValueError)):
        read_prices(str(file))
