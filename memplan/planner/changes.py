"""Every legal single change of a recipe, knob by knob: which keys it sets, and what it costs the user.

A knob is one thing that can be turned; its changes exclude each other and are ordered from the mildest. What the user wants
kept is left alone, and a change that the recipe's keys contradict is no change.

Known limits:
    Not in the space, because no recipe key says them or no rule covers them: several GPUs, weights offloaded to the CPU, other
    training stacks, fewer target modules, another method than LoRA. Nor are activations offloaded to the CPU: what their copies
    cost is no operation, and a plan would take them for free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.families import WITHOUT_SDPA
from memplan.planner import pain
from memplan.planner.optimizer_changes import optimizer_changes
from memplan.planner.result import Change, Skipped, Tier
from memplan.planner.training_changes import adapter_changes, method_changes, precision_changes, setting_peft
from memplan.prepare import prepare
from memplan.recipe import Attention, Loss, Recipe
from memplan.resolve import Resolved

# The shortest sequence and the lowest rank that are proposed.
SHORTEST_SEQUENCE = 128
LOWEST_RANK = 4
# A batch with more divisors than this is divided by halvings.
MOST_PARTS = 12


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing to turn.

    Attributes:
        name: stable.
        changes: called with the complete recipe; the changes that it can take, mildest first.
        otherwise: why there are none, where there are none.
    """

    name: str
    changes: Callable[[Resolved], Iterator[Change]]
    otherwise: str


def allocator(base: Resolved) -> Iterator[Change]:
    """PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: segments grow instead of being replaced."""
    if not base["expandable_segments"]:
        yield Change(
            id="expandable-segments",
            knob="allocator",
            tier=Tier.SAME_RESULT,
            title="let the allocator's segments grow",
            sets={"expandable_segments": True},
            note="PYTORCH_ALLOC_CONF=expandable_segments:True, before the process starts",
        )


def loss(base: Resolved) -> Iterator[Change]:
    """The loss without the whole matrix of logits."""
    if base["loss"] != Loss.DEFAULT or base.task != "causal-lm":
        return
    for strength, (value, title) in enumerate(
        ((Loss.CHUNKED, "compute the loss in chunks"), (Loss.FUSED_LINEAR, "fuse the loss with the output embedding"))
    ):
        yield Change(
            id=f"{value.replace('_', '-')}-loss",
            knob="loss",
            tier=Tier.SAME_RESULT,
            title=title,
            sets={"loss": str(value)},
            strength=strength,
        )


def attention(base: Resolved) -> Iterator[Change]:
    """A fused attention kernel instead of one that keeps every score."""
    if base["attn_implementation"] == Attention.EAGER and base.config["model_type"] not in WITHOUT_SDPA:
        yield Change(
            id="sdpa",
            knob="attention",
            tier=Tier.SAME_RESULT,
            title="use PyTorch's fused attention",
            sets={"attn_implementation": "sdpa"},
        )


def caches(base: Resolved) -> Iterator[Change]:
    """Neither the cache of keys and values nor the outputs are needed in training."""
    sets = {key: False for key in ("use_cache", "keep_outputs") if base[key]}
    if sets:
        yield Change(
            id="drop-outputs",
            knob="outputs",
            tier=Tier.SAME_RESULT,
            title="keep neither outputs nor the key/value cache",
            sets=sets,
        )


def batch(base: Resolved) -> Iterator[Change]:
    """Smaller micro-batches: with their product kept by accumulation, or without."""
    size, steps = base["micro_batch_size"], base["gradient_accumulation_steps"]
    smaller = _parts(size)
    for strength, part in enumerate(smaller):
        yield Change(
            id=f"micro-batch-{part}",
            knob="batch",
            tier=Tier.SAME_RESULT,
            title=f"micro-batches of {part}, {steps * size // part} accumulated",
            sets={"micro_batch_size": part, "gradient_accumulation_steps": steps * size // part},
            strength=strength,
        )
    if steps > 1:
        yield Change(
            id="no-accumulation",
            knob="batch",
            tier=Tier.DIFFERENT_TRAINING,
            title=f"no gradient accumulation: batches of {size}",
            sets={"gradient_accumulation_steps": 1},
            pain=pain.FEWER_SEQUENCES * pain.halvings(steps, 1),
            note=f"a step sees {size} sequences instead of {size * steps}",
        )
    for strength, part in enumerate(smaller):
        yield Change(
            id=f"batch-{part}",
            knob="batch",
            tier=Tier.DIFFERENT_TRAINING,
            title=f"batches of {part}",
            sets={"micro_batch_size": part},
            strength=strength,
            pain=pain.FEWER_SEQUENCES * pain.halvings(size, part),
            note=f"a step sees {part * steps} sequences instead of {size * steps}",
        )


def _parts(size: int) -> list[int]:
    """Smaller batches that divide `size`, largest first; where there are many, one for each halving."""
    parts = [part for part in range(size // 2, 0, -1) if size % part == 0]
    if len(parts) <= MOST_PARTS:
        return parts
    halvings = [size >> power for power in range(1, size.bit_length())]
    return list(dict.fromkeys(next(part for part in parts if part <= half) for half in halvings))


def checkpointing(base: Resolved) -> Iterator[Change]:
    """Keep only each layer's input and compute the rest again in backward."""
    if not base["activation_checkpointing"] and base.method not in ("prefix_tuning", "cartridge"):
        yield Change(
            id="activation-checkpointing",
            knob="checkpointing",
            tier=Tier.SLOWER,
            title="recompute activations in backward",
            sets={"activation_checkpointing": True},
            note="gradient_checkpointing in TrainingArguments before transformers 5",
        )


def sequence(base: Resolved) -> Iterator[Change]:
    """Shorter sequences, by halves."""
    length, strength = base["sequence_length"] // 2, 0
    while length >= SHORTEST_SEQUENCE:
        yield Change(
            id=f"sequence-{length}",
            knob="sequence",
            tier=Tier.DIFFERENT_TRAINING,
            title=f"sequences of {length} tokens",
            sets={"sequence_length": length},
            strength=strength,
            pain=pain.SHORTER_SEQUENCES * (strength + 1),
            note="longer texts are cut or split",
        )
        length, strength = length // 2, strength + 1


def rank(base: Resolved) -> Iterator[Change]:
    """A lower rank of LoRA, by halves."""
    current = rank_of(base)
    if current is None:
        return
    value, strength = current // 2, 0
    while value >= LOWEST_RANK:
        yield Change(
            id=f"rank-{value}",
            knob="rank",
            tier=Tier.DIFFERENT_TRAINING,
            title=f"rank {value}",
            sets=setting_peft(base, "r", "lora_r", value),
            strength=strength,
            pain=pain.LOWER_RANK * (strength + 1),
        )
        value, strength = value // 2, strength + 1


def rank_of(base: Resolved) -> int | None:
    """The rank of a recipe whose method is plain LoRA under any of its names; None for others."""
    lora = prepare(base).adaptation.lora
    if not lora or base.peft.get("rank_pattern"):
        return None
    return next(iter(lora.values())).rank


KNOBS = (
    Knob("allocator", allocator, "segments can grow already"),
    Knob("loss", loss, "the loss is chunked or fused already, or is not that of a language model"),
    Knob("attention", attention, "the attention kernel is fused already, or the model has no fused one"),
    Knob("outputs", caches, "neither outputs nor a key/value cache are kept"),
    Knob("optimizer", optimizer_changes, "no milder form of this optimizer is known"),
    Knob("batch", batch, "the micro-batch is one sequence"),
    Knob("checkpointing", checkpointing, "activations are recomputed already, or the method excludes it"),
    Knob("precision", precision_changes, "weights are 16-bit or quantized already"),
    Knob("adapter", adapter_changes, "there is no adapter in float32 and no dropout in one"),
    Knob("method", method_changes, "the base weights are quantized already, or the method has no such form"),
    Knob("rank", rank, f"there is no LoRA of a rank of {2 * LOWEST_RANK} or more"),
    Knob("sequence", sequence, f"sequences are shorter than {2 * SHORTEST_SEQUENCE} tokens"),
)


def legal_changes(
    base: Resolved,
    *,
    keep: Collection[str] = (),
    allow: Collection[str] | None = None,
    highest_tier: Tier = Tier.HARDWARE,
) -> tuple[list[Change], list[Skipped]]:
    """All single changes of a recipe, and which knobs have none.

    Args:
        base: the complete recipe.
        keep: recipe keys that stay as they are.
        allow: the only recipe keys that may change; None for all.
        highest_tier: dearer changes are left out.

    Raises:
        UnknownNameError: a key of `keep` or `allow` that does not exist.
        InputError: a key is both kept and allowed.
    """
    fixed = keys_kept(keep, allow)
    found: list[Change] = []
    skipped: list[Skipped] = []
    for knob in KNOBS:
        every = list(knob.changes(base))
        free = [change for change in every if not fixed & set(change.sets) and change.tier <= highest_tier]
        found += free
        if not free:
            reason = knob.otherwise if not every else "kept as the user asked"
            skipped.append(Skipped(knob=knob.name, reason=reason))
    return found, skipped


def keys_kept(keep: Collection[str], allow: Collection[str] | None) -> frozenset[str]:
    """The recipe keys that may not change.

    Raises:
        UnknownNameError: a key that does not exist.
        InvalidValueError: one text where a list of keys is wanted.
        InputError: a key is both kept and allowed.
    """
    for name, keys in (("keep", keep), ("allow", allow)):
        if isinstance(keys, str):
            raise InvalidValueError(name, keys, "a list of recipe keys")
        for key in keys or ():
            if key not in Recipe.model_fields:
                raise UnknownNameError("recipe key", key, Recipe.model_fields, show=0)
    if allow is None:
        return frozenset(keep)
    both = sorted(set(keep) & set(allow))
    if both:
        raise InputError(f"{both[0]} is both kept and allowed to change", hint="name it once")
    return frozenset(Recipe.model_fields) - frozenset(allow)
