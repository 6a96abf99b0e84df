"""What waits for backward in host memory: how much of it, what that leaves on the GPU, and in whose memory it comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engine import estimate
from memplan.estimate import Estimate, Phase
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.allocator import MIB
from memplan.step.allocator_run import FREE_LATER, SYNCHRONIZE, Event, replay
from tests.stacks.cases import ADAPTED, LLAMA

CHECKPOINTS: dict[str, Any] = {"activation_checkpointing": True, "activation_offloading": "checkpoints"}
SAVED_TENSORS: dict[str, Any] = {"stack": "trl", "activation_offloading": True}


def run(*, layers: int = 6, **keys: Any) -> Estimate:
    return estimate(Recipe(model={**LLAMA, "num_hidden_layers": layers}, optim="sgd", **keys))


def held(found: Estimate) -> int:
    """Live bytes when forward has ended."""
    return next(point.end_bytes for point in found.timeline if (point.step, point.phase) == (2, Phase.FORWARD))


@pytest.mark.parametrize("offloaded", [CHECKPOINTS, SAVED_TENSORS], ids=["checkpoints", "saved tensors"])
@pytest.mark.parametrize("method", [{}, ADAPTED], ids=["full", "LoRA"])
def test_what_is_offloaded_is_not_on_the_gpu(offloaded: dict[str, Any], method: dict[str, Any]) -> None:
    shape = {"micro_batch_size": 2, "sequence_length": 512, **method}
    without = run(**{**offloaded, "activation_offloading": False}, **shape)
    found = run(**offloaded, **shape)
    # What is copied last is still on its way when forward ends.
    assert 0 < held(without) - held(found) <= found.host_bytes
    assert found.peak.live_bytes <= without.peak.live_bytes
    assert found.unsupported == ()


@given(batch=st.integers(1, 8), length=st.integers(2, 300), layers=st.integers(1, 12), reentrant=st.booleans())
def test_offloaded_checkpoints_never_need_more(batch: int, length: int, layers: int, reentrant: bool) -> None:
    mode = "reentrant" if reentrant else True
    shape = {"micro_batch_size": batch, "sequence_length": length, "activation_checkpointing": mode, "layers": layers}
    without, found = run(**shape), run(activation_offloading="checkpoints", **shape)
    assert held(found) <= held(without)
    assert found.peak.live_bytes <= without.peak.live_bytes


@given(batch=st.integers(1, 8), length=st.integers(1, 300), layers=st.integers(1, 12))
def test_host_memory_holds_every_checkpoint_in_a_power_of_two(batch: int, length: int, layers: int) -> None:
    found = run(layers=layers, micro_batch_size=batch, sequence_length=length, **CHECKPOINTS)
    size = batch * length * LLAMA["hidden_size"] * 2
    assert found.host_bytes == layers * (1 << (size - 1).bit_length())


@pytest.mark.parametrize("offloaded", [CHECKPOINTS, SAVED_TENSORS], ids=["checkpoints", "saved tensors"])
def test_host_memory_grows_with_batch_sequence_and_layers(offloaded: dict[str, Any]) -> None:
    def host(batch: int, length: int, layers: int) -> int:
        return run(layers=layers, micro_batch_size=batch, sequence_length=length, **offloaded).host_bytes

    base = host(2, 100, 3)
    assert 0 < base < host(5, 100, 3) < host(5, 300, 3) < host(5, 300, 4)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"stack": "torchtune", "activation_checkpointing": True, "activation_offloading": True},
            "what is walked is TRL's",
        ),
        ({**SAVED_TENSORS, "activation_checkpointing": False}, "without activation_checkpointing true"),
        ({**SAVED_TENSORS, "activation_checkpointing": "reentrant"}, "without activation_checkpointing true"),
        (
            {**SAVED_TENSORS, "method": "trainable_tokens", "peft": {"token_indices": [1]}},
            "of trainable_tokens under TRL",
        ),
        ({**SAVED_TENSORS, **ADAPTED, "merge_and_unload": True}, "merging after offloaded activations"),
        ({"activation_offloading": "saved-tensors"}, "under stack transformers"),
        ({"activation_checkpointing": True, "activation_offloading": "hidden-states"}, "hidden states"),
        ({**CHECKPOINTS, "stack": "torchtune"}, "offloaded checkpoints under stack torchtune"),
    ],
    ids=str,
)
def test_what_no_trace_confirms_is_not_walked(keys: dict[str, Any], text: str) -> None:
    found = run(gpu="h100-80gb", **keys)
    assert any(text in entry for entry in found.unsupported)
    assert found.verdict("h100-80gb").fits != "fits"


def test_types_whose_layers_take_more_by_position_are_not_walked() -> None:
    model = {
        "model_type": "bert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 99,
    }
    found = estimate(Recipe(model=model, sequence_length=64, **CHECKPOINTS))
    assert any("offloaded checkpoints of bert" in entry for entry in found.unsupported)


def test_true_is_what_the_stack_does() -> None:
    assert resolve(Recipe(model=LLAMA, **SAVED_TENSORS)).values["activation_offloading"] == "saved-tensors"


# -- the allocator ------------------------------------------------------------------------------------------------


def reserved(*events: Event, expandable: bool = False) -> int:
    return replay(events, expandable_segments=expandable).max_reserved_bytes


@pytest.mark.parametrize("expandable", [False, True])
def test_streams_do_not_share_memory(expandable: bool) -> None:
    size = 20 * MIB
    assert reserved((1, size), (1, 0), (2, size), expandable=expandable) == size
    assert reserved((1, size), (1, 0), (2, size, 1), expandable=expandable) == 2 * size
    assert reserved((1, size, 1), (1, 0), (2, size, 1), expandable=expandable) == size


def test_memory_that_another_stream_uses_waits_for_it() -> None:
    size = 20 * MIB
    assert reserved((1, size, 1), (1, FREE_LATER), (2, size, 1)) == 2 * size
    assert reserved((1, size, 1), (1, FREE_LATER), SYNCHRONIZE, (2, size, 1)) == size
    assert reserved((1, size, 1), (1, FREE_LATER), (0, 0), (2, size, 1)) == size  # emptying the cache waits as well


def test_what_waits_is_not_allocated_any_more() -> None:
    report = replay([(1, 5 * MIB, 1), (1, FREE_LATER), (2, MIB)])
    assert report.max_allocated_bytes == 5 * MIB
    assert report.phases[-1].end_allocated_bytes == report.phases[-1].end_live_bytes == MIB
