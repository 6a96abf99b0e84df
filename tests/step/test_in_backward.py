"""Updates inside backward: what hooks make and free, what it saves, against traces of torch's own hooks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan import estimate
from memplan.agreement.cases import small_config
from memplan.compare import Comparison, compare
from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.optimizers import get_optimizer
from memplan.optimizers.lomo import Lomo
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.in_backward import AfterAccumulation, BeforeAccumulation, Hooks, hooks_of
from memplan.step.tensor import Leaf, Tape
from memplan.training_step import recorded_step, walk
from tests.stacks.cases import AMP, LLAMA

EACH: dict[str, Any] = {"optimizer_in_backward": True}
TIED = {**LLAMA, "tie_word_embeddings": True}
# So few tokens and words that an update can be the highest moment.
SMALL: dict[str, Any] = {"model": {**LLAMA, "vocab_size": 307}, "micro_batch_size": 1, "sequence_length": 8}


def keys_of(**keys: Any) -> dict[str, Any]:
    return {"model": LLAMA, "micro_batch_size": 2, "sequence_length": 64, **keys}


# -- the hooks by hand ------------------------------------------------------------------------------------


def leaf_with_gradient(tape: Tape, name: str, dtype: DType = DType.BFLOAT16) -> Leaf:
    leaf = Leaf(name, (64, 64), dtype)
    leaf.grad = tape.alloc(leaf.shape, dtype, "mm", Component.GRADIENTS)
    return leaf


def entered(hooks: Hooks | None) -> tuple[Tape, Hooks]:
    assert hooks is not None
    tape = Tape()
    tape.enter(Phase.BACKWARD)
    return tape, hooks


def happened(tape: Tape) -> list[str]:
    """Each event by its op."""
    return [("+" if event >= 0 else "-") + tape.infos[event if event >= 0 else ~event].op for event in tape.events]


def test_an_optimizer_for_each_parameter_keeps_states_and_drops_the_gradient() -> None:
    tape, hooks = entered(hooks_of(get_optimizer("adamw_torch_fused")))
    assert isinstance(hooks, AfterAccumulation)
    leaf = leaf_with_gradient(tape, "w")
    hooks.arrives(tape)
    hooks.accumulated(tape, leaf)
    assert leaf.grad is None
    assert happened(tape) == ["+mm", "+optimizer states", "+optimizer states", "+optimizer states", "-mm"]
    assert [storage.info.size_bytes for storage in tape.states] == [512, 8192, 8192]  # step, exp_avg, exp_avg_sq
    # Its second gradient finds the states.
    leaf.grad = tape.alloc(leaf.shape, leaf.dtype, "mm", Component.GRADIENTS)
    hooks.accumulated(tape, leaf)
    assert len(tape.states) == 3


def test_lomo_uses_a_gradient_when_the_next_one_comes_and_the_last_one_after_backward() -> None:
    tape, hooks = entered(hooks_of(get_optimizer("lomo")))
    assert isinstance(hooks, BeforeAccumulation)
    first, second = (leaf_with_gradient(tape, name) for name in ("a", "b"))
    hooks.arrives(tape)
    hooks.accumulated(tape, first)
    assert first.grad is not None
    hooks.arrives(tape)
    assert first.grad is None
    hooks.accumulated(tape, second)
    before = len(tape.events)
    hooks.finish(tape)
    assert second.grad is None
    assert happened(tape)[before:] == ["+grad_fp32", "-mm", "+p_fp32", "-grad_fp32", "-p_fp32"]


def test_an_ordinary_optimizer_has_no_hooks() -> None:
    assert hooks_of(None) is None


# -- what it saves ----------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "amp": AMP,
    "fp32": {"precision": "fp32", "dtype": "float32"},
    "LoRA": {"method": "lora", "target_modules": "all-linear"},
    "checkpointed": {"activation_checkpointing": True},
    "reentrant": {"activation_checkpointing": "reentrant"},
    "tied": {"model": TIED},
}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd", "adafactor"])
@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_updates_inside_backward_never_take_more(keys: dict[str, Any], optim: str) -> None:
    common = keys_of(max_grad_norm=0.0, optim=optim, **keys) if "model" not in keys else {**keys_of(), **keys}
    ordinary, within = estimate(**{**common, "optim": optim}), estimate(**{**common, "optim": optim, **EACH})
    assert within.unsupported == ()
    assert within.peak.live_bytes <= ordinary.peak.live_bytes
    assert within.bytes_per_parameter.gradients == 0 < ordinary.bytes_per_parameter.gradients
    # States come earlier than in an ordinary first step; from the second on no moment ends higher.
    for before, after in zip(ordinary.timeline, within.timeline, strict=True):
        assert after.step == 1 or after.end_bytes <= before.end_bytes


def test_the_gradients_of_the_whole_model_are_what_goes() -> None:
    keys = keys_of(micro_batch_size=1, sequence_length=16, max_grad_norm=0.0)
    ordinary, within = estimate(**keys), estimate(**keys, **EACH)
    end = {(point.step, point.phase): point.end_bytes for point in ordinary.timeline}
    states = prepare(resolve(Recipe(**keys))).state
    for point in within.timeline:
        if point.phase is Phase.BACKWARD and point.step == 2:
            assert end[2, Phase.BACKWARD] - point.end_bytes == states.gradients_bytes
    # Nothing is left to do in the optimizer's step.
    steps = [point for point in within.timeline if point.phase is Phase.OPTIMIZER_STEP]
    assert all(point.peak_bytes == point.end_bytes for point in steps)


def test_an_8_bit_optimizer_of_each_parameter_has_its_own_code_books() -> None:
    keys = keys_of(optim="adamw_8bit", max_grad_norm=0.0)
    ordinary, within = (prepare(resolve(Recipe(**keys, **more))) for more in ({}, EACH))
    large = [param for group in within.state.trained for param in group if param.elements >= 4096]
    # The embedding, which Trainer keeps in 32 bits, is like any other here.
    embedding = 5003 * 384
    moved = 2 * (embedding * 4 - embedding - 4 * -(-embedding // 256))
    books = 2 * 1024 * (len(large) - 1)
    difference = within.state.states.device_bytes - ordinary.state.states.device_bytes
    assert difference == pytest.approx(books - moved, abs=4 * 512)


def test_lomo_beats_sgd_on_many_layers_and_its_float32_copies_cost_on_few() -> None:
    def peaks(layers: int) -> tuple[int, int]:
        keys = keys_of(model={**LLAMA, "num_hidden_layers": layers}, max_grad_norm=0.0)
        return estimate(**keys, optim="lomo").peak.live_bytes, estimate(**keys, optim="sgd").peak.live_bytes

    lomo, sgd = peaks(16)
    assert lomo < sgd
    lomo, sgd = peaks(2)
    assert lomo > sgd


@pytest.mark.parametrize("optim", ["lomo", "adalomo"])
def test_lomo_accumulates_nothing(optim: str) -> None:
    one, four = estimate(**keys_of(optim=optim)), estimate(**keys_of(optim=optim, gradient_accumulation_steps=4))
    assert any("accumulates nothing" in text for text in four.assumptions)
    assert any("clips nothing" in text for text in one.assumptions)
    # A divided loss: a scalar and its gradient.
    assert one.peak.live_bytes <= four.peak.live_bytes <= one.peak.live_bytes + 2 * 512


def test_components_sum_to_the_peak_and_states_stay() -> None:
    for optim in ({"optim": "adalomo"}, {"optim": "adamw_torch", **EACH}, {"optim": "adamw_8bit", **EACH}):
        resolved = resolve(Recipe(**keys_of(**optim)))
        prepared = prepare(resolved)
        for phase in walk(resolved, prepared)[1].phases:
            assert sum(phase.components.values()) == phase.peak_bytes
        last = walk(resolved, prepared)[1].phases[-1]
        assert last.components[Component.OPTIMIZER_STATES] == prepared.state.states.device_bytes
        assert Component.GRADIENTS not in last.components


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit", "lomo", "adalomo"])
def test_folded_layers_are_the_layers_one_by_one(optim: str) -> None:
    keys = {**SMALL, "optim": optim, **({} if "lomo" in optim else EACH)}
    resolved = resolve(Recipe(**keys))
    prepared = prepare(resolved)
    folded, single = ([(p.peak_bytes, p.end_bytes) for p in walk(resolved, prepared, fold=fold)[1].phases]
                      for fold in (None, False))  # fmt: skip
    assert folded == single


@pytest.mark.parametrize("optim", ["adamw_torch", "lomo"])
def test_other_shapes_are_what_they_would_be_recorded_as(optim: str) -> None:
    for batch, length in ((1, 64), (3, 37), (2, 700), (5, 64), (1, 8)):
        keys = keys_of(optim=optim, **({} if "lomo" in optim else EACH))
        resolved = resolve(Recipe(**{**keys, "micro_batch_size": batch, "sequence_length": length}))
        prepared = prepare(resolved)
        step, sizes = recorded_step(resolved, prepared)
        known = [(phase.peak_bytes, phase.end_bytes) for phase in step.walker.run(sizes).phases]
        assert known == [(phase.peak_bytes, phase.end_bytes) for phase in walk(resolved, prepared)[1].phases]


def test_the_optimizer_is_part_of_what_a_step_records() -> None:
    # Steps are shared by all that differ in the optimizer alone, unless that steps inside backward.
    peaks = {name: estimate(**keys_of(max_grad_norm=0.0, **keys)).peak.live_bytes
             for name, keys in {"sgd": {"optim": "sgd"}, "lomo": {"optim": "lomo"}, "each": {"optim": "sgd", **EACH},
                                "again": {"optim": "sgd"}}.items()}  # fmt: skip
    assert peaks["sgd"] == peaks["again"] > peaks["each"]
    assert peaks["lomo"] not in (peaks["sgd"], peaks["each"])


def test_adalomo_keeps_states_of_frozen_parameters_as_they_are_stored() -> None:
    optimizer = get_optimizer("adalomo")
    assert isinstance(optimizer, Lomo)
    state = prepare(resolve(Recipe(**keys_of(optim="adalomo", method="qlora")))).state
    packed = [param for param in state.frozen if param.shape[-1:] == (1,)]
    assert packed
    # [n / 2, 1] bytes: a row of n / 2 in float32, as many bytes as the 16-bit weight had.
    assert all(optimizer.state_tensors(param)[0].storage_bytes == param.shape[0] * 4 for param in packed)
    assert any("frozen" in text for text in estimate(**keys_of(optim="adalomo", method="lora")).assumptions)


# -- against traces ---------------------------------------------------------------------------------------

TRACED: dict[str, dict[str, Any]] = {
    "fused AdamW": {},
    "foreach AdamW, amp": {"optim": "adamw_torch", **AMP},
    "8 bits, checkpointed": {"optim": "adamw_8bit", "activation_checkpointing": True},
    "paged, LoRA, reentrant": {
        "optim": "paged_adamw_8bit", "method": "lora", "target_modules": "all-linear", "activation_checkpointing": "reentrant",
    },
    "Adafactor": {"optim": "adafactor"},
    "Adagrad, made before": {"optim": "adagrad"},
    "SGD, tied": {"optim": "sgd", "model": TIED},
    "outputs kept": {"keep_outputs": True},
    "small, RMSprop": {**SMALL, "optim": "rmsprop"},
    "small, fp32, foreach": {**SMALL, "optim": "adamw_torch", "precision": "fp32", "dtype": "float32"},
    "BERT, biases": {**SMALL, "model": {**small_config("bert"), "vocab_size": 307}, "optim": "adamw_torch"},
    "T5, checkpointed": {**SMALL, "model": {**small_config("t5"), "vocab_size": 307}, "activation_checkpointing": True},
    "Mixtral": {**SMALL, "model": {**small_config("mixtral"), "vocab_size": 307}, "optim": "adamw_torch"},
    "DeepSeek": {**SMALL, "model": {**small_config("deepseek_v3"), "vocab_size": 307}},
}  # fmt: skip


@cache
def compared() -> dict[str, Comparison]:
    pytest.importorskip("torch")
    recipes = [Recipe(**{**keys_of(), **EACH, **keys}) for keys in TRACED.values()]
    return dict(zip(TRACED, compare(recipes), strict=True))


@pytest.mark.parametrize("name", TRACED)
def test_walk_equals_trace(name: str) -> None:
    comparison = compared()[name]
    assert comparison.refusal == ""
    assert comparison.is_equal, [phase for phase in comparison.phases if not phase.is_equal]
