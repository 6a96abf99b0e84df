"""The catalog of optimizers: one row a name, read from `memplan/catalog/optimizers.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memplan.optimizers.base import Implementation


@dataclass(frozen=True, slots=True)
class OptimizerRow:
    """Facts of one optimizer name.

    Attributes:
        name: the name, as in transformers' `optim` where `origin` is `transformers`.
        origin: who gave the name: `transformers`, or `memplan` for optimizers without a name there.
        library: distribution name and version whose source was read, empty if the name is refused.
        cls: import path of the class.
        implementation: code path that runs on a CUDA device by default.
        layout: key of the rule (`memplan.optimizers.registry`) that gives state and temporaries.
        fixed: options that the name itself settles (`{optim_bits = 8}`).
        optim_args: keys of `optim_args` that transformers reads for this name.
        updates_in_backward: gradients are consumed by hooks inside backward.
        unsupported: why the name is refused; empty if it is not.
        source: file, function and version behind the row.
        date: when the source was read.
    """

    name: str
    origin: str
    library: str
    cls: str
    implementation: Implementation
    layout: str
    source: str
    date: str
    fixed: tuple[tuple[str, object], ...] = ()
    optim_args: tuple[str, ...] = ()
    updates_in_backward: bool = False
    unsupported: str = ""


@lru_cache(maxsize=1)
def optimizer_rows() -> dict[str, OptimizerRow]:
    """Every row of the catalog by name, in the order of the file."""
    document = tomllib.loads(files("memplan").joinpath("catalog", "optimizers.toml").read_text(encoding="utf-8"))
    families: dict[str, dict[str, object]] = document["family"]
    rows: dict[str, OptimizerRow] = {}
    for entry in document["optimizer"]:
        facts = {**families[entry["family"]], **entry}
        del facts["family"]
        facts["cls"] = facts.pop("class")
        facts["date"] = str(facts["date"])
        facts["fixed"] = tuple(facts.get("fixed", {}).items())
        facts["optim_args"] = tuple(facts.get("optim_args", ()))
        row = OptimizerRow(**facts)
        rows[row.name] = row
    return rows
