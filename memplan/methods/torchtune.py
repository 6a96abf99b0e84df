"""LoRA and DoRA as torchtune's own layers compute them, on the modules and with the parameters that PEFT would give them.

Source: torchtune 0.6.1 modules/peft/{lora,dora}.py, models/mistral/_component_builders.py.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.methods.adaptation import Adaptation
from memplan.step.adapters.torchtune import dora, lora
from memplan.step.site import AdapterSite
from memplan.torchtune.models import OUTPUT_MODULE, ComponentBuilder, is_magnitude


def as_torchtune(adaptation: Adaptation, builder: ComponentBuilder) -> Adaptation:
    """`adaptation` with the forward passes of torchtune's layers."""
    if adaptation.peft.get("peft_type") != "LORA":
        return adaptation
    rewrite = dora if adaptation.peft.get("use_dora") else lora

    def layer(path: str, site: AdapterSite) -> AdapterSite:
        options = dict(site.options)
        if path == OUTPUT_MODULE and not builder.output_dropout:
            options["dropout"] = 0.0
        return AdapterSite(rewrite, site.tensors, tuple(options.items()))

    # A layer's own parameters are registered before those of modules in it, so the magnitude before both factors.
    places: dict[str, int] = {}
    for entry in adaptation.added:
        places.setdefault(entry.module, len(places))
    added = sorted(adaptation.added, key=lambda entry: (places[entry.module], not is_magnitude(entry.name)))
    return replace(
        adaptation,
        added=tuple(added),
        adapters={path: layer(path, site) for path, site in adaptation.adapters.items()},
    )
