"""What making an adapter computes on the GPU: `update_layer` where it needs the base weight.

Source: peft/tuners/*/layer.py, update_layer (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memplan.architecture import Architecture
from memplan.dtypes import DType
from memplan.estimate import Phase
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.layers import LayerOps
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import WORKSPACE, Tensor


@dataclass(frozen=True, slots=True)
class Creation:
    """The allocations of making one layer's adapter.

    Attributes:
        events: index of a storage that is allocated, its complement when it is freed.
        sizes: of the storages, rounded; 0 for cuBLAS's workspace.
        made: storages that stay as parameters or buffers, by the tensor's name.
        weight: the storage that takes the base weight's place, which goes before event number `replaced`; None where the
            base weight stays.
        flushes: numbers of the events before which the allocator's cache is emptied.
    """

    events: tuple[int, ...]
    sizes: tuple[int, ...]
    made: Mapping[str, int]
    weight: int | None = None
    replaced: int = 0
    flushes: frozenset[int] = frozenset()


def creations(architecture: Architecture, sites: Mapping[str, Site], plain: DType) -> dict[str, Creation]:
    """For each adapted layer that computes something when its adapter is made: what it allocates.

    Args:
        architecture: the modules.
        sites: what stands at each of them.
        plain: type of what is not quantized then: a 4-bit layer's bias is rewritten only by its first forward.
    """
    known: dict[object, Creation] = {}
    found: dict[str, Creation] = {}
    for module in architecture.modules:
        site = sites[module.path]
        if site.adapter is None or site.adapter.creation is None:
            continue
        shape = (module.out_features, module.in_features)
        key = (site, shape)
        if key not in known:
            known[key] = _run(site, shape, plain)
        found[module.path] = known[key]
    return found


def _run(site: Site, shape: tuple[int, int], plain: DType) -> Creation:
    assert site.adapter is not None
    assert site.adapter.creation is not None
    tape = LayerOps(StepSettings(1, 1), {"layer": site})
    tape.workspace_bytes = 1
    tape.grad_enabled = False
    tape.enter(Phase.LOAD)
    weight = tape.parameter("layer", "weight", shape)
    # Adapters start in the dtype of the layer; PEFT casts them when all are made.
    quantized = site.quantized
    dtype = weight.dtype if quantized is None else quantized.compute_dtype
    tensors = tuple(
        replace(entry, dtype=dtype) if entry.dtype is DType.FLOAT32 else entry for entry in site.adapter.tensors
    )
    started = replace(site, adapter=replace(site.adapter, tensors=tensors))
    bias = Tensor(tape, shape[:1], plain, None) if site.parameter("bias") is not None else None
    layer = AdaptedLayer(tape, "layer", started, weight, bias, lambda x: x)
    made: dict[str, Tensor] = site.adapter.creation(layer)
    indices = {name: tensor.storage.info.index for name, tensor in made.items() if tensor.storage is not None}
    events = tuple(tape.events)
    sizes = tuple(0 if info.op == WORKSPACE else info.size_bytes for info in tape.infos)
    found = Creation(events, sizes, indices, flushes=frozenset(layer.flushes))
    if layer.replaced is None:
        return found
    place, left = layer.replaced
    assert left.storage is not None
    return replace(found, weight=left.storage.info.index, replaced=place)
