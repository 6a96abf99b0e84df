"""Greedy generation on a tape: one forward pass over the prompt, then one for every token but the last.

Mirrors transformers 5.23 generation/utils.py (`generate`, `_sample`, `_update_model_kwargs_for_generation`): only the last
token's logits are made, and copied to float32; tokens and positions grow by concatenation, and so does the cache.

Symbols: E rows of the prompt, P tokens of the prompt, T tokens in the cache, V vocabulary.

Known limits:
    Of many tokens the first ones and the last one are executed; between them the cache grows at once.
    Prompts without padding; no beams, no sampling, no static cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step.builder import Builder
from memplan.step.dim import Dim
from memplan.step.key_value_cache import KeyValueCache
from memplan.step.recording import Recording
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Storage, Tensor

# Tokens whose forward pass is executed one by one; of more of them the last one besides.
EXECUTED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Generation:
    """What is generated after a step.

    Attributes:
        rows: prompts at a time.
        prompt_length: tokens of each.
        new_tokens: that follow it.
        autocast: whether the model's forward is wrapped (accelerate wraps the model that it is given, not PEFT's base).
    """

    rows: int
    prompt_length: int
    new_tokens: int
    autocast: bool


def record_generation(
    forward: Callable[[Builder], Tensor],
    sites: Mapping[str, Site],
    settings: StepSettings,
    generation: Generation,
    *,
    fold: bool = True,
) -> Recording:
    """Generate on a tape without gradients.

    Args:
        forward: a family's forward pass, which returns the last token's logits where the tape has a cache.
        sites: what stands at each module path.
        settings: of the training step; checkpointing and dropout are off, cuBLAS's workspace is there.
        generation: what is generated.
        fold: execute equal layers once instead of one by one.
    """
    settings = replace(
        settings, checkpointing=None, workspace_bytes=0, autocast=settings.autocast if generation.autocast else None
    )
    tape = Builder(settings, sites, fold=fold)
    tape.grad_enabled = tape.training = False
    tape.enter(Phase.GENERATION)
    tape.batch = rows = Dim(generation.rows, "E")
    tape.cache = KeyValueCache()
    prompt = Dim(generation.prompt_length, "P")
    _generate(tape, forward, rows, prompt, generation.new_tokens)
    return Recording(tape.infos, tape.segments, frozenset(), frozenset(), tuple(tape.ports), Phase.GENERATION)


def _integers(tape: Builder, op: str, *shape: int) -> Storage:
    return tape.alloc(shape, DType.INT64, op, Component.BUFFERS)


def _generate(tape: Builder, forward: Callable[[Builder], Tensor], rows: Dim, prompt: Dim, new_tokens: int) -> None:
    assert tape.cache is not None
    given = [_integers(tape, name, rows, prompt) for name in ("input_ids", "attention_mask")]
    special = [_integers(tape, "special token") for _ in range(3)]
    first_positions = _integers(tape, "position_ids", rows, prompt)
    unfinished = _integers(tape, "unfinished_sequences", rows)
    positions: Storage | None = None
    tokens: Storage | None = None
    next_tokens: Storage | None = None
    scores: Tensor | None = None
    inputs: list[Storage] = []
    for number in range(new_tokens):
        length = prompt + number
        if number >= EXECUTED_TOKENS and number < new_tokens - 1:
            continue
        if number > EXECUTED_TOKENS:
            tape.cache.grow(tape, length - 1)
            positions, tokens = (_integers(tape, "cat", rows, length) for _ in range(2))
        tape.tokens = tape.sequence = prompt if number == 0 else Dim(1)
        inputs = [_integers(tape, "clone", rows, tape.tokens) for _ in range(2 if number else 1)]
        logits = _forward(tape, forward)
        tape.cache.length = length
        if number == 0:
            inputs.clear()  # variables of `_prefill`; afterwards the loop's own
        positions = _integers(tape, "cat", rows, length + 1)
        with tape.component(Component.LOGITS_AND_LOSS):
            scores = tape.new((rows, logits.shape[-1]), DType.FLOAT32, "_to_copy")
        next_tokens = _next_tokens(tape, rows)
        tokens = _integers(tape, "cat", rows, length + 1)
        unfinished = _still_unfinished(tape, rows)
        del logits
    del given, special, first_positions, unfinished, positions, tokens, next_tokens, scores, inputs
    tape.cache = None


def _next_tokens(tape: Builder, rows: Dim) -> Storage:
    """The best token of each row, or padding where the row has ended."""
    best, kept, ended = (_integers(tape, op, rows) for op in ("argmax", "mul", "rsub"))
    padding = _integers(tape, "mul", rows)
    del ended
    chosen = _integers(tape, "add", rows)
    del kept, padding, best
    return chosen


def _still_unfinished(tape: Builder, rows: Dim) -> Storage:
    """`unfinished_sequences & ~stopping_criteria(...)` (generation/stopping_criteria.py): the length, then the end's token."""

    def flags(op: str) -> Storage:
        return tape.alloc((rows,), DType.BOOL, op, Component.BUFFERS)

    done, criterion = flags("full"), flags("full")
    either = flags("bitwise_or")
    del criterion, done
    ends = flags("isin")
    criterion = flags("any")
    del ends
    done = flags("bitwise_or")
    del criterion, either
    going_on = flags("bitwise_not")
    del done
    unfinished = _integers(tape, "bitwise_and", rows)
    del going_on
    return unfinished


def _forward(tape: Builder, forward: Callable[[Builder], Tensor]) -> Tensor:
    logits = forward(tape)
    tape.casts.clear()  # autocast's cache ends with its context
    tape.held.clear()
    tape.outputs.clear()
    if tape.settings.autocast is None or not logits.dtype.is_half:
        return logits
    with tape.component(Component.LOGITS_AND_LOSS):
        return tape.new(logits.shape, DType.FLOAT32, "_to_copy")  # `convert_to_fp32`
