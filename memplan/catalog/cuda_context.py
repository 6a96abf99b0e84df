"""Bytes on the device that depend on the GPU alone: the CUDA context, and cuBLAS workspaces.

The rows are `cuda_context.toml`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from memplan.catalog.gpus import Gpu
from memplan.errors import UnsupportedError
from memplan.units import MIB

_TABLE = Path(__file__).resolve().parent / "cuda_context.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFact:
    """What a process holds on a GPU outside torch's allocator.

    Attributes:
        expected_bytes: the reading that comes nearest.
        low_bytes: smallest of the readings that apply.
        high_bytes: largest of them; an upper bound of an estimate stands on it.
        source: where the readings stand.
        certainty: `exact` where this very GPU was read, `assumed` where the figure is carried over or rounded.
        date: when the row was last looked at (ISO 8601).
    """

    expected_bytes: int
    low_bytes: int
    high_bytes: int
    source: str
    certainty: Literal["exact", "assumed"]
    date: str


# Row `unknown`, where no GPU is named; a test holds it to the table, which a cold start then need not read.
UNNAMED_GPU_CONTEXT_BYTES = 400 * MIB


# Read on the user's own card by `memplan calibrate`, by its id; in force once `memplan.profiles` is told so.
LOCAL_CONTEXTS: dict[str, ContextFact] = {}


def cuda_context(gpu: Gpu) -> ContextFact:
    """The CUDA context of one process on `gpu`, from the nearest row: this card, this GPU, its architecture, or none."""
    if gpu.id in LOCAL_CONTEXTS:
        return LOCAL_CONTEXTS[gpu.id]
    table = _table()
    row = table["gpu"].get(gpu.id) or table["architecture"].get(gpu.architecture) or table["unknown"]
    return ContextFact(**row)


def cublas_workspace_bytes(gpu: Gpu) -> int:
    """Bytes of one cuBLAS workspace on `gpu`, allocated once a (handle, stream) through torch's allocator.

    A training step has two handles, one for the forward pass and one for the autograd thread.

    Raises:
        UnsupportedError: no row for the GPU's compute capability.
    """
    row = _table()["cublas_workspace"]
    sizes: dict[str, int]
    if gpu.compute_capability is not None:
        key, sizes = str(gpu.compute_capability[0]), row["bytes_by_major"]
    else:
        key, sizes = gpu.instruction_set, row["bytes_by_instruction_set"]
    if key not in sizes:
        raise UnsupportedError(f"the BLAS workspace of {gpu.name} ({gpu.instruction_set}) is not known")
    return sizes[key]


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    with _TABLE.open("rb") as file:
        return tomllib.load(file)
