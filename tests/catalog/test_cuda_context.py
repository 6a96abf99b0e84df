from __future__ import annotations

from dataclasses import replace

import pytest

from memplan.catalog.cuda_context import UNNAMED_GPU_CONTEXT_BYTES, cublas_workspace_bytes, cuda_context
from memplan.catalog.gpus import Gpu, get_gpu, list_gpus
from memplan.errors import UnsupportedError
from memplan.units import MIB


@pytest.mark.parametrize("gpu", list_gpus(), ids=lambda gpu: gpu.id)
def test_every_gpu_has_a_context_with_a_source(gpu: Gpu) -> None:
    fact = cuda_context(gpu)
    assert 0 < fact.low_bytes <= fact.expected_bytes <= fact.high_bytes < gpu.usable_bytes
    assert fact.source
    assert fact.date


@pytest.mark.parametrize(
    ("gpu_id", "expected_bytes", "certainty"),
    [
        ("t4", 147718144, "exact"),  # 140.875 MiB
        ("rtx-6000-ada", 426 * MIB, "exact"),
        ("b200", 612 * MIB, "exact"),
        ("rtx-4090", 426 * MIB, "assumed"),  # from its architecture
        ("h100", 512 * MIB, "assumed"),
        ("a100-40gb", 287047680, "assumed"),
        ("p100", 400 * MIB, "assumed"),  # no row for Pascal
        ("mi300x", 400 * MIB, "assumed"),
    ],
)
def test_nearest_row(gpu_id: str, expected_bytes: int, certainty: str) -> None:
    fact = cuda_context(get_gpu(gpu_id))
    assert (fact.expected_bytes, fact.certainty) == (expected_bytes, certainty)


def test_assumed_rows_reach_the_eager_context() -> None:
    # pytorch/pytorch PR #86509: 666,632,192 B with every kernel loaded at once.
    for gpu in list_gpus():
        fact = cuda_context(gpu)
        assert fact.certainty == "exact" or fact.high_bytes >= 666632192


@pytest.mark.parametrize(
    ("gpu_id", "size_bytes"),
    [
        ("t4", (2 * 4096 + 8 * 16) * 1024),  # the default configuration :4096:2:16:8, in KiB
        ("rtx-4090", 8519680),
        ("h200", 32 * MIB),
        ("b200", 32 * MIB),
        ("rtx-5090", 32 * MIB),
        ("mi300x", 128 * MIB),
        ("rx-7900-xtx", 32 * MIB),
    ],
)
def test_blas_workspace(gpu_id: str, size_bytes: int) -> None:
    assert cublas_workspace_bytes(get_gpu(gpu_id)) == size_bytes


def test_every_gpu_has_a_blas_workspace() -> None:
    assert all(cublas_workspace_bytes(gpu) > 0 for gpu in list_gpus())


def test_unknown_generation_is_unsupported() -> None:
    gpu = replace(get_gpu("h200"), name="X1", compute_capability=(99, 0), instruction_set="sm_990")
    with pytest.raises(UnsupportedError) as caught:
        cublas_workspace_bytes(gpu)
    assert str(caught.value) == "the BLAS workspace of X1 (sm_990) is not known"


def test_without_a_gpu_the_context_is_that_of_an_unknown_one() -> None:
    unknown = replace(get_gpu("t4"), id="nosuch", architecture="nosuch")
    assert cuda_context(unknown).expected_bytes == UNNAMED_GPU_CONTEXT_BYTES
