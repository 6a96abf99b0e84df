"""A family's forward and backward on a tape, every parameter trained, and what must hold of any such recording."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families import Head, describe, family_of
from memplan.model_config import normalise_config
from memplan.step.recording import Recording, record
from memplan.step.settings import StepSettings
from memplan.step.site import Site, SiteParameter
from memplan.units import BLOCK_BYTES


def record_config(
    config: Mapping[str, Any], head: Head, settings: StepSettings, *, dtype: DType = DType.BFLOAT16, fold: bool = True
) -> Recording:
    """One micro-step of a config with all its parameters in `dtype` and trained."""
    normal = normalise_config(config)
    sites = {
        module.path: Site(tuple(SiteParameter(parameter.name, dtype, True) for parameter in module.parameters))
        for module in describe(normal, head).modules
    }
    forward = family_of(normal["model_type"]).forward
    return record(lambda t: forward(t, normal, head), sites, settings, fold=fold)


def assert_balanced(config: Mapping[str, Any], head: Head, settings: StepSettings, *, unused: str = "$.") -> None:
    """Fail unless the step leaves exactly one gradient of the right size for each parameter.

    Args:
        config: as in config.json.
        head: which head.
        settings: how the step is executed.
        unused: pattern of the parameters that the loss does not reach (a pooler, a declared but uncalled embedding).
    """
    recording = record_config(config, head, settings, fold=False)
    alive: set[int] = set()
    for segment in recording.segments:
        for event in segment.events:
            if event >= 0:
                alive.add(event)
            else:
                alive.remove(~event)
    left = [recording.infos[index] for index in alive]
    assert [info for info in left if info.component is not Component.GRADIENTS] == []
    expected = {
        name: -(-parameter.elements * 2 // BLOCK_BYTES) * BLOCK_BYTES
        for name, _, parameter in describe(normalise_config(config), head).named_parameters()
        if not re.search(unused, name)
    }
    assert {info.module: info.size_bytes for info in left} == expected
    assert len(left) == len(expected)
