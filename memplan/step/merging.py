"""Merging an adapter into the base (`merge_and_unload`): layer by layer, what each layer's `merge` computes.

Sources: PEFT 0.21 tuners_utils.py (`_unload_and_optionally_merge`: layer by layer; what is unloaded goes once nobody trains
it), memplan/step/adapters/merging.py.

Known limits:
    Not `safe_merge`, which copies each weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.architecture import Architecture, Module
from memplan.estimate import Component, Phase
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.adapters.merging import merge_of
from memplan.step.layers import LayerOps
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.settings import StepSettings
from memplan.step.site import Site, adapter_tensor_name


def merging_events(
    architecture: Architecture, sites: Mapping[str, Site], buffers: Mapping[str, int] | None = None
) -> tuple[OptimizerEvent, ...]:
    """What merging allocates and frees, layer by layer; layers without a rule are left out (`merges`).

    Args:
        architecture: the modules.
        sites: what stands at each of them.
        buffers: bytes of the buffers that the method adds, by name: a layer's own go with it.
    """
    adapters = [site.adapter for site in sites.values() if site.adapter is not None]
    shared = {f"{entry.owner}.{entry.name}" for adapter in adapters for entry in adapter.tensors if entry.owner}
    known: dict[object, tuple[tuple[str, int, bool], ...]] = {}
    found: list[OptimizerEvent] = []
    for module in architecture.modules:
        site = sites[module.path]
        if site.adapter is None:
            continue
        key = (site, module.in_features, module.out_features)
        if key not in known:
            known[key] = _merged(module, site)
        found += [
            OptimizerEvent(f"{label} in {module.path}", allocates, ((size, 1),))
            for label, size, allocates in known[key]
        ]
        found += [
            OptimizerEvent(name, False, ((size, 1),), Component.BUFFERS, loaded=True)
            for name, size in (buffers or {}).items()
            if size and name.startswith(f"{module.path}.") and adapter_tensor_name(name) not in shared
        ]
    return tuple(found)


def merges(module: Module, site: Site) -> bool:
    """Whether merging the module's adapter has a rule."""
    return merge_of(_layer(module, site)) is not None


def _layer(module: Module, site: Site) -> AdaptedLayer:
    tape = LayerOps(StepSettings(1, 1), {"layer": site})
    tape.enter(Phase.MERGE)
    weight = tape.parameter("layer", "weight", (module.out_features, module.in_features))
    return AdaptedLayer(tape, "layer", site, weight, None, lambda x: x)


def _merged(module: Module, site: Site) -> tuple[tuple[str, int, bool], ...]:
    """(label, bytes, whether it comes) of everything that comes or goes while one layer is merged."""
    layer = _layer(module, site)
    merge = merge_of(layer)
    if merge is None:
        return ()
    merge(layer)
    events, infos = layer.t.events, layer.t.infos
    assert sorted(event for event in events if event >= 0) == sorted(~event for event in events if event < 0)
    found = []
    for event in events:
        info = infos[event if event >= 0 else ~event]
        assert info.component in (Component.TEMPORARIES, Component.ACTIVATIONS)
        found.append((f"{info.op}#{info.index}", info.size_bytes, event >= 0))
    return tuple(found)
