"""Streaming multiprocessors of GPUs, from `multiprocessors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from memplan.catalog.gpus import Gpu

# Without a GPU in the recipe, as everywhere: an A100's.
DEFAULT_MULTIPROCESSORS = 108


@cache
def _counts() -> Mapping[str, int]:
    text = files("memplan.catalog").joinpath("multiprocessors.toml").read_text(encoding="utf-8")
    return {str(row["id"]): int(row["count"]) for row in tomllib.loads(text)["gpu"]}


def multiprocessors(gpu: Gpu | None) -> int | None:
    """How many `gpu` has, None where no row says; an A100's without a GPU."""
    return DEFAULT_MULTIPROCESSORS if gpu is None else _counts().get(gpu.id)
