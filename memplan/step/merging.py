"""Merging LoRA into the base (`merge_and_unload`): each layer's product of B and A, and that product scaled.

Symbols: R adapter rank, N_out and N_in of a layer.

Source: PEFT 0.21 tuners/lora/layer.py (`merge`, `get_delta_weight`: `transpose(B @ A) * scaling`, added to the weight in
place), tuners_utils.py (`_unload_and_optionally_merge`: layer by layer; what is unloaded goes once nobody trains it).

Known limits:
    Plain LoRA on weights that are not quantized; not `safe_merge`, which copies each weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.architecture import Architecture
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.site import Site
from memplan.units import round_to_block

PLAIN = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_B.bias"})


def merging_events(architecture: Architecture, sites: Mapping[str, Site]) -> tuple[OptimizerEvent, ...]:
    """What merging allocates and frees, layer by layer."""
    found: list[OptimizerEvent] = []
    for module in architecture.modules:
        adapter = sites[module.path].adapter
        if adapter is None:
            continue
        # `B @ A` has the adapter's type.
        size = module.in_features * module.out_features * adapter.tensors[0].dtype.itemsize_bytes
        block = ((round_to_block(size), 1),)
        product, scaled = f"mm in {module.path}", f"mul in {module.path}"
        found += [
            OptimizerEvent(product, True, block),
            OptimizerEvent(scaled, True, block),
            OptimizerEvent(product, False, block),
            OptimizerEvent(scaled, False, block),
        ]
    return tuple(found)
