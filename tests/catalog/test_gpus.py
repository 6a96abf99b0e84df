from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import memplan.catalog.gpus
from memplan.catalog.gpus import get_gpu, list_gpus
from memplan.errors import UnknownNameError
from memplan.units import GIB, MIB

ROWS = tomllib.loads((Path(memplan.catalog.gpus.__file__).parent / "gpus.toml").read_text())


def test_the_catalog_has_fifty_rows() -> None:
    assert len(list_gpus()) == 50
    assert list_gpus() is list_gpus()


@pytest.mark.parametrize("gpu_id", ROWS)
def test_usable_is_no_more_than_any_reading(gpu_id: str) -> None:
    gpu, row = get_gpu(gpu_id), ROWS[gpu_id]
    named = [
        reading
        for reading, source in zip(row["readings_gib"], row["sources"], strict=False)
        if "not named" not in source
    ]
    # A reading is rounded to its last digit, two decimals at worst.
    assert all(gpu.usable_bytes <= (reading + 0.005) * GIB for reading in named)
    assert 0.9 * gpu.advertised_bytes < gpu.usable_bytes <= gpu.advertised_bytes
    if gpu.total_bytes is not None:
        assert gpu.usable_bytes <= gpu.total_bytes <= gpu.advertised_bytes + GIB
    assert gpu.sources
    assert gpu.date


def test_published_bytes_are_kept_to_the_byte() -> None:
    # total_memory of torch as published in bytes, and deviceQuery figures, which are whole MiB.
    assert get_gpu("rtx-5090").usable_bytes == 33677180928
    assert get_gpu("rtx-6000-ada").usable_bytes == 50865307648
    assert get_gpu("a10g").usable_bytes == 22587 * MIB
    assert get_gpu("rtx-pro-6000").usable_bytes == 97250 * MIB


def test_a_whole_row() -> None:
    gpu = get_gpu("rtx-4090")
    assert gpu.name == "RTX 4090 24GB"
    assert (gpu.vendor, gpu.architecture, gpu.compute_capability) == ("NVIDIA", "Ada", (8, 9))
    assert gpu.instruction_set == "sm_89"
    assert gpu.advertised_bytes == 24 * GIB
    assert gpu.total_bytes == 24564 * MIB
    assert gpu.usable_bytes == int(23.52 * GIB)
    assert gpu.confidence == "high"


def test_amd_has_no_compute_capability() -> None:
    gpu = get_gpu("mi300x")
    assert (gpu.compute_capability, gpu.instruction_set) == (None, "gfx942")


@pytest.mark.parametrize(
    ("name", "gpu_id"),
    [
        ("RTX 4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("H100", "h100-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("Tesla T4", "t4"),
        ("a10", "a10g"),
    ],
)
def test_names(name: str, gpu_id: str) -> None:
    assert get_gpu(name).id == gpu_id


def test_every_name_means_one_row() -> None:
    names = [name for gpu in list_gpus() for name in (gpu.id, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.casefold() and " " not in name for name in names)


def test_unknown_gpu() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_gpu("rtx-4095")
    assert str(caught.value) == (
        "unknown GPU 'rtx-4095'\n"
        "did you mean rtx-4090 or rtx-5090 or rtx-4080?\n"
        "allowed: " + ", ".join(sorted(gpu.id for gpu in list_gpus()))
    )
    assert caught.value.code == "unknown_gpu"


def test_a100_is_two_cards_and_so_none() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_gpu("A100")
    assert {"a100-40gb", "a100-80gb"} <= set(caught.value.suggestions)
