"""A deep model from shallow traces (`--layers auto`): the events of one more layer, repeated.

The same step is traced at three depths. What the second has beyond the first is, phase by phase, a few runs of events
that repeat what stands before them: one layer's part of a forward pass, of a backward pass, of a list that an optimizer
makes. Repeating each of them gives the events at any depth, in order and with what frees what, so that allocated and
reserved memory come from the same replay as at full depth. The third trace is the proof: it must equal what the first
two predict for it, event by event; otherwise, and for whatever is not known to have equal layers, the answer is a
refusal and the model is traced at full depth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from memplan.errors import MemplanError, UnsupportedError
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.trace.spec import LAYER_KEYS, TraceSpec
from memplan.trace.unfolding import LayersDifferError, deepen

# Enough that two inner layers exist between first and last.
SHALLOWEST = 6
# Model types whose layers are alike, and whose deepened traces tests hold against full depth.
ALIKE = frozenset(
    {
        "bert", "gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "phi", "phi3", "qwen2", "qwen3",
        "qwen3_moe", "roberta", "starcoder2",
    }
)  # fmt: skip
# Options of PEFT's configs that choose layers by number.
_CHOOSES_LAYERS = (
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "adapter_layers",
    "blocks_to_transform",
)
_NAMES_A_LAYER = re.compile(r"(?:^|[.(|])\d|\\d|\[\d|\[\^?0-9")


def depth_of(config: Mapping[str, Any]) -> int:
    """The number of layers that a config names, 0 if it names none."""
    return next((int(config[key]) for key in LAYER_KEYS if isinstance(config.get(key), int)), 0)


def refusal(spec: TraceSpec) -> str:
    """Why the layers of a run cannot be taken for equal; empty where they can."""
    config = spec.model_config
    if config["model_type"] not in ALIKE:
        return f"no test holds deepened traces of {config['model_type']} models against full depth"
    depth = depth_of(config)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == depth and any(entry != value[0] for entry in value):
            return f"{key} makes layers of several kinds"
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "some layers have experts and others do not"
    if spec.activation_offloading == "saved-tensors":
        return "tensors on their way to the host stay while the layers after them run"
    options = spec.peft or {}
    for key in _CHOOSES_LAYERS:
        if options.get(key) is not None:
            return f"peft.{key} chooses layers by number"
    for text in [*_texts(options.values()), *_texts(spec.trainable or ())]:
        if _NAMES_A_LAYER.search(text):
            return f"{text!r} names layers by number"
    return ""


def _texts(values: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _texts([*value, *value.values()])
        elif isinstance(value, list | tuple | set):
            found += _texts(value)
    return found


def extrapolate(spec: TraceSpec, *, traced_layers: int = SHALLOWEST, timeout_s: float | None = None) -> TraceResult:
    """The trace of `spec` at its full depth, from traces of `traced_layers` layers and of one and two fewer.

    Raises:
        UnsupportedError: with code `layers_differ`: the layers are not alike, or not known to be.
        TraceFailedError: a trace failed.
    """
    reason = refusal(spec)
    if reason:
        raise _differ(reason)
    depths = (traced_layers - 2, traced_layers - 1, traced_layers)
    results: list[TraceResult] = []
    for answer in run_many([dataclasses.replace(spec, num_layers=depth) for depth in depths], timeout_s=timeout_s):
        if isinstance(answer, MemplanError):
            raise answer
        results.append(answer)
    return combine(results, depths, depth_of(spec.model_config))


def combine(results: list[TraceResult], depths: tuple[int, int, int], num_layers: int) -> TraceResult:
    """What traces at three successive `depths` say about `num_layers` layers.

    Raises:
        UnsupportedError: with code `layers_differ`: the third is not what the first two predict.
    """
    low, middle, high = results
    try:
        deepen(low, middle, depths[0], depths[2], expected=high)
        deep = deepen(middle, high, depths[1], num_layers)
    except LayersDifferError as error:
        raise _differ(str(error)) from None
    deep.notes.append(
        f"{num_layers} layers from traces of {depths[0]}, {depths[1]} and {depths[2]}: the events of one layer repeated, "
        "after the deepest of these was found to be what the other two predict, event by event; allocated and reserved "
        "memory are a replay of the repeated events"
    )
    return deep


def _differ(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"these layers cannot be extrapolated from a few of them: {reason}",
        hint="trace the model at full depth (--layers full)",
        code="layers_differ",
    )
