"""Which tensor of the recipe asked for the bytes in the message.

The message names the segment that the allocator wanted, not the tensor: a tensor of up to 1 MiB wants 2 MiB, one below
10 MiB wants 20 MiB, a larger one its size rounded up to 2 MiB (`get_allocation_size`). Every allocation of the recipe's
walk is rounded so, printed as torch prints it, and compared with the text: no tolerance is needed. Several tensors can
agree; the traceback orders them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from memplan.estimate import Component, Phase
from memplan.oom.frames import Place
from memplan.oom.message import OomMessage, printed
from memplan.prepare import Prepared
from memplan.resolve import Resolved
from memplan.step.allocator import segment_size_bytes
from memplan.step.optimizer_step import OptimizerEvent
from memplan.step.receipt import fold_layers, formula, numbers
from memplan.training_step import recordings, updating
from memplan.units import MIB

# A request of this or less stands for any tensor below 10 MiB.
LARGEST_SHARED_SEGMENT_BYTES = 20 * MIB
# Words of a traceback's part, and what they are called in module paths and ops.
_PART_WORDS = {
    "attention": ("attn", "attention", "softmax", "rotary"),
    "mlp": ("mlp", "silu", "gelu", "ffn", "feed_forward", "intermediate", "experts"),
    "lm_head": ("lm_head", "embed_out", "logits"),
    "norm": ("norm",),
    "embedding": ("embed", "wte"),
    "adapter": ("lora", "adapter"),
    "quantized": ("dequant", "4bit", "8bit"),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor whose allocation would have printed the same size.

    Attributes:
        phase: when it is allocated.
        module: path, equal layers folded to `*`.
        formula, numbers: of its size; empty where it is no tensor of the model.
        count: how many allocations of the step are alike.
        score: how well the traceback agrees; higher is better.
    """

    phase: str
    component: Component
    module: str
    op: str
    formula: str
    numbers: str
    size_bytes: int
    count: int
    score: int


def candidates(message: OomMessage, place: Place, resolved: Resolved, prepared: Prepared) -> tuple[Candidate, ...]:
    """Every allocation of the recipe that agrees with the message, best first.

    Empty for a request of 20 MiB or less: it stands for any tensor below 10 MiB, which tells nothing.
    """
    if message.requested_bytes is None or message.requested_bytes <= LARGEST_SHARED_SEGMENT_BYTES:
        return ()
    found: dict[tuple[str, str, str, str], Candidate] = {}
    for entry in _allocations(resolved, prepared):
        if printed(segment_size_bytes(entry.size_bytes)) != message.requested_text:
            continue
        key = (entry.phase, entry.module, entry.op, entry.numbers)
        known = found.get(key)
        count = entry.count + (known.count if known else 0)
        found[key] = _scored(entry, place, count)
    return tuple(sorted(found.values(), key=lambda entry: (-entry.score, -entry.count, entry.module)))


def _scored(entry: Candidate, place: Place, count: int) -> Candidate:
    score = 0
    if place.phase:
        same = entry.phase == place.phase or (place.recomputed and entry.phase in (Phase.FORWARD, Phase.BACKWARD))
        score += 4 if same else -4
    if place.part == "logits_and_loss":
        score += 3 if entry.component is Component.LOGITS_AND_LOSS else 0
    elif place.part:
        text = f"{entry.module} {entry.op}".casefold()
        score += 2 if any(word in text for word in _PART_WORDS.get(place.part, ())) else 0
    return replace(entry, count=count, score=score)


def _allocations(resolved: Resolved, prepared: Prepared) -> Iterator[Candidate]:
    """Every allocation of load, step and update."""
    for entry in prepared.state.stored:
        for size in entry.block_sizes:
            yield Candidate(
                Phase.LOAD,
                entry.component,
                fold_layers(entry.name),
                "parameter",
                formula(entry.shape, entry.dtype),
                numbers(entry.shape, entry.dtype),
                size,
                1,
                0,
            )
    for recording in recordings(resolved, prepared):
        for segment in recording.segments:
            for event in segment.events:
                if event < 0:
                    continue
                info = recording.infos[event]
                yield Candidate(
                    str(segment.phase),
                    info.component,
                    fold_layers(info.module),
                    info.op,
                    formula(info.shape, info.dtype),
                    numbers(info.shape, info.dtype),
                    info.size_bytes,
                    segment.count,
                    0,
                )
    clipping, optimizer_events = updating(resolved, prepared)
    events = (*prepared.construction, *clipping, *optimizer_events)
    for happening in events:
        yield from _of_optimizer(happening)


def _of_optimizer(event: OptimizerEvent) -> Iterator[Candidate]:
    if not event.allocates:
        return
    for size, count in event.blocks:
        yield Candidate(Phase.OPTIMIZER_STEP, event.component, "the optimizer", event.label, "", "", size, count, 0)
