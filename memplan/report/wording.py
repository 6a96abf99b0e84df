"""Words and numbers that several reports share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memplan.estimate import Component, Peak
from memplan.units import GIB, format_bytes

_NAMES = {
    Component.CUDA_CONTEXT: "CUDA context",
    Component.KV_CACHE: "KV cache",
    Component.LOGITS_AND_LOSS: "logits and loss",
}


def component_name(component: Component) -> str:
    """`optimizer_states` as `optimizer states`."""
    return _NAMES.get(component, component.value.replace("_", " "))


def gib(size_bytes: int) -> str:
    """Bytes in GiB with two decimals, for sentences that compare sizes: `15.54 GiB`."""
    return f"{size_bytes / GIB:,.2f} GiB"


def gib_apart(*sizes: int) -> list[str]:
    """Sizes for one sentence, with as few decimals (one to six) as keep different sizes different."""
    for decimals in range(1, 7):
        texts = [f"{size / GIB:,.{decimals}f} GiB" for size in sizes]
        if len(set(texts)) == len(set(sizes)):
            break
    return texts


def share(part_bytes: int, whole_bytes: int) -> str:
    """A part of a whole in percent: `35.3 %`; `<0.1 %` for what rounds to nothing."""
    if not whole_bytes:
        return ""
    percent = 100 * part_bytes / whole_bytes
    return f"{percent:.1f} %" if percent >= 0.05 or not part_bytes else "<0.1 %"


def moment(peak: Peak) -> str:
    """When the peak is: `step 2, backward: mul in model.layers.1.mlp`."""
    return f"step {peak.step}, {phase_name(peak.phase)}: {peak.at}"


def phase_name(phase: str) -> str:
    """`optimizer_step` as `optimizer step`."""
    return str(phase).replace("_", " ")


def value_text(value: Any) -> str:
    """A recipe value as a user writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=list)
    return str(value)


def settings_text(sets: Mapping[str, Any]) -> str:
    """Recipe keys as a user sets them: `micro_batch_size = 1, optim = adamw_8bit`."""
    return ", ".join(
        f"{key} = {value_text(value)}" if value is not None else f"no {key}" for key, value in sets.items()
    )


def difference(size_bytes: int) -> str:
    """A signed size: `+1.50 GiB`, `-12.0 MiB`."""
    return f"+{format_bytes(size_bytes)}" if size_bytes > 0 else format_bytes(size_bytes)


def model_name(recipe: Mapping[str, Any]) -> str:
    """The model of a recipe in a few words."""
    model = recipe["model"]
    return f"{model.get('model_type')} (inline config)" if isinstance(model, Mapping) else str(model)


def counted(count: int, noun: str) -> str:
    """`1 card`, `130 cards`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
