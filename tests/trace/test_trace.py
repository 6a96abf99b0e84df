"""Whole traces against closed forms and against each other."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trace_cases import LLAMA, lora

from memplan.errors import UnavailableError
from memplan.step.allocator_run import replay
from memplan.trace import TraceFailedError, TraceResult, TraceSpec, run, run_many
from memplan.trace.viz import snapshot, write_snapshot
from memplan.units import round_to_block

BASE: dict[str, Any] = {"model_config": LLAMA, "batch": 2, "sequence": 128}
TRAINABLE_LORA = 2 * (8 * (256 + 256) + 8 * (256 + 128))
WORKSPACE = 8_519_680
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "fused": {"optim": "adamw_torch_fused"},
    "for-loop": {"optim": "adamw_torch_for_loop"},
    "sgd": {"optim": "sgd"},
    "8-bit": {"optim": "adamw_bnb_8bit"},
    "paged": {"optim": "paged_adamw_32bit"},
    "lora": {"peft": lora(["q_proj", "v_proj"])},
    "lora-kept": {"peft": lora(["q_proj", "v_proj"]), "keep_outputs": True},
    "qlora": {"peft": lora("all-linear"), "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"peft": lora("all-linear"), "load_in_8bit": True, "dtype": "float16"},
    "autocast": {"dtype": "float32", "autocast": "bfloat16"},
    "scaler": {"dtype": "float32", "autocast": "float16", "grad_scaler": True, "max_grad_norm": 1.0},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"checkpointing": "non-reentrant"},
    "flash-attn": {"attn_implementation": "flash_attention_2"},
    "sm90": {"gpu_arch": "sm90"},
    "padded": {"padding": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, TraceResult]:
    answers = run_many([TraceSpec.from_dict({**BASE, **options}) for options in CASES.values()])
    failed = {name: answer for name, answer in zip(CASES, answers, strict=True) if not isinstance(answer, TraceResult)}
    assert not failed
    return {name: answer for name, answer in zip(CASES, answers, strict=True) if isinstance(answer, TraceResult)}


def _weights(result: TraceResult) -> int:
    return result.phase(1, "forward").end_components["weights"]


def _elements() -> list[int]:
    hidden, inner, kv, vocabulary = 256, 688, 128, 1000
    layer = [hidden * hidden, hidden * kv, hidden * kv, hidden * hidden, *[hidden * inner] * 3, hidden, hidden]
    return [vocabulary * hidden, *layer, *layer, hidden, vocabulary * hidden]


def test_weights_gradients_and_adam_states_are_their_closed_forms(results: dict[str, TraceResult]) -> None:
    result = results["full"]
    sizes = sum(round_to_block(count * 2) for count in _elements())
    assert result.parameters == {"total": sum(_elements()), "trainable": sum(_elements())}
    end = result.phase(2, "forward").end_components
    assert end["weights"] == sizes
    assert end["optimizer_states"] == 2 * sizes
    assert result.phase(2, "backward").end_components["gradients"] == sizes


def test_foreach_adds_one_copy_of_the_parameters(results: dict[str, TraceResult]) -> None:
    step = {name: results[name].phase(2, "optimizer_step").peak_bytes for name in ("full", "fused", "for-loop")}
    sizes = sum(round_to_block(count * 2) for count in _elements())
    steps_on_device = len(_elements()) * 512
    assert step["full"] - step["fused"] == sizes - steps_on_device
    # The loop holds sqrt and quotient of one tensor, and the previous tensor's `denom`: three of the MLP's matrices.
    assert step["for-loop"] - (step["full"] - sizes) == 3 * round_to_block(256 * 688 * 2)


def test_optimizer_states_by_kind(results: dict[str, TraceResult]) -> None:
    states = {
        name: results[name].phase(2, "forward").end_components.get("optimizer_states", 0)
        for name in ("full", "sgd", "8-bit", "paged")
    }
    assert states["sgd"] == 0
    # Tensors below 4096 elements stay in float32; the others hold a byte an element and a scale every 256.
    expected = sum(
        2 * round_to_block(count * 4)
        if count < 4096
        else 2 * (round_to_block(count) + round_to_block(-(-count // 256) * 4))
        for count in _elements()
    )
    assert states["8-bit"] - expected in range(4 * 1024 + 1)
    assert results["paged"].host_bytes == 8 * sum(count for count in _elements() if count >= 100_000)
    assert states["paged"] == sum(2 * round_to_block(count * 4) for count in _elements() if count < 100_000)


def test_lora_counts_and_the_memory_of_the_logits(results: dict[str, TraceResult]) -> None:
    result = results["lora"]
    assert result.parameters["trainable"] == TRAINABLE_LORA
    logits = 2 * 128 * 1000
    assert result.phase(2, "backward").at.name == "_log_softmax_backward_data"
    assert result.phase(2, "backward").components["logits_and_loss"] >= 3 * 4 * logits
    kept = results["lora-kept"].phase(2, "backward").peak_bytes - result.phase(2, "backward").peak_bytes
    assert kept == round_to_block(2 * logits)


def test_components_sum_to_the_peak_and_phases_follow_each_other(results: dict[str, TraceResult]) -> None:
    for result in results.values():
        for entry in result.phases:
            assert sum(entry.components.values()) == entry.peak_bytes
            assert sum(entry.end_components.values()) == entry.end_bytes
        assert max(event.live_bytes for event in result.walk()) == result.peak.peak_bytes
        assert result.phases[0].phase == "load"
        assert min(event.live_bytes for event in result.walk()) >= 0


def test_the_second_step_starts_from_a_steady_state(results: dict[str, TraceResult]) -> None:
    for name, result in results.items():
        first, second = result.phase(1, "optimizer_step"), result.phase(2, "optimizer_step")
        assert first.end_bytes == second.end_bytes, name


def test_workspaces_of_both_threads(results: dict[str, TraceResult]) -> None:
    sizes = [s.size_bytes for s in results["full"].storages if s.op == "cublas_workspace"]
    assert sizes == [WORKSPACE, WORKSPACE]
    assert [s.size_bytes for s in results["sm90"].storages if s.op == "cublas_workspace"] == [32 * 2**20] * 2


def test_attention_kernels(results: dict[str, TraceResult]) -> None:
    assert results["full"].attention == {"flash": 4}
    assert results["sm90"].attention == {"cudnn": 4}
    assert results["checkpointing"].attention == {"flash": 8}
    assert results["padded"].attention == {"efficient": 4}
    # PyTorch's kernel saves the random state as two tensors, the package as one.
    flash = results["flash-attn"].phase(2, "forward").end_bytes
    assert flash == results["full"].phase(2, "forward").end_bytes - 2 * 512


def test_quantized_weights_are_packed(results: dict[str, TraceResult]) -> None:
    linear = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
    other = sum(_elements()) - linear
    assert _weights(results["int8"]) == pytest.approx(linear + 4 * other, rel=0.001)
    assert _weights(results["qlora"]) == pytest.approx(linear // 2 + 4 * other, rel=0.001)
    state = results["qlora"].phase(1, "forward").end_components["quantization_state"]
    assert linear // 64 < state < linear // 64 + 64 * 1024


def test_accumulation_keeps_gradients_and_adds_a_transient(results: dict[str, TraceResult]) -> None:
    phases = [(entry.step, entry.phase) for entry in results["accumulation"].phases]
    assert phases.count((2, "forward")) == 2
    assert results["accumulation"].peak.peak_bytes > results["full"].peak.peak_bytes


def test_saved_storages_are_what_the_forward_left(results: dict[str, TraceResult]) -> None:
    result = results["full"]
    saved = sum(storage.block_bytes for storage in result.saved_storages(2))
    grown = result.phase(2, "forward").end_bytes - result.phase(1, "optimizer_step").end_bytes
    # The previous batch and loss were dropped meanwhile.
    assert 0 <= saved - grown <= 8192


def test_json_round_trip(results: dict[str, TraceResult]) -> None:
    result = results["qlora"]
    again = TraceResult.from_json(result.to_json())
    assert again == result


def test_replay_agrees_with_the_live_bytes(results: dict[str, TraceResult]) -> None:
    for result in results.values():
        expandable = replay(result.allocator_events(), expandable_segments=True)
        assert expandable.max_live_bytes == expandable.max_allocated_bytes == result.peak.peak_bytes
        default = replay(result.allocator_events())
        assert default.max_live_bytes == result.peak.peak_bytes <= default.max_allocated_bytes
        assert [entry.phase for entry in default.phases][:3] == ["load0", "forward1", "backward1"]


@pytest.mark.parametrize("expandable", [False, True])
def test_snapshot_is_read_by_torchs_own_functions(
    results: dict[str, TraceResult], tmp_path: Path, expandable: bool
) -> None:
    from torch.cuda import _memory_viz

    path = tmp_path / "snapshot.pickle"
    write_snapshot(results["full"], path, expandable_segments=expandable)
    data = path.read_bytes()
    assert data[:2] == b"\x80\x04"
    read = pickle.loads(data)
    assert "total_reserved" in _memory_viz.segsum(read)
    assert "TOTAL MEM" in _memory_viz.trace(read)
    categories = {entry["category"] for entry in read["device_traces"][0] if "category" in entry}
    assert {"unknown", "parameter", "activation", "gradient", "optimizer_state"} <= categories
    assert all(entry["frames"] for entry in read["device_traces"][0])
    for segment in read["segments"]:
        assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]


def test_snapshot_leaves_the_smallest_out(results: dict[str, TraceResult]) -> None:
    small = snapshot(results["full"], max_entries=300)
    assert len(small["device_traces"][0]) <= 300 + 3 + 60


def test_the_shim_without_a_compiler_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TraceSpec.from_dict(BASE)
    compiled = run(spec)
    monkeypatch.setenv("MEMPLAN_SHIM", "patched")
    patched = run(spec)
    assert compiled.versions["shim"] == "compiled"
    assert patched.versions["shim"] == "patched"
    assert patched.events == compiled.events
    assert patched.storages == compiled.storages


FAILURES: dict[str, dict[str, Any]] = {
    "nonesuch": {"model_config": {**LLAMA, "model_type": "nonesuch"}},
    "no_such_layer": {"peft": {"peft_type": "LORA", "target_modules": ["no_such_layer"]}},
    "did you mean LORA": {"peft": {"peft_type": "LORAX"}},
    "rank": {"peft": {"peft_type": "LORA", "rank": 8}},
    "adamw_8bit": {"optim": "adamw"},
    "module model": {"attn_implementation": "flex_attention"},
}


def test_failures_name_what_failed_and_give_no_number() -> None:
    answers = run_many([TraceSpec.from_dict({**BASE, **options}) for options in FAILURES.values()])
    for words, answer in zip(FAILURES, answers, strict=True):
        assert isinstance(answer, TraceFailedError), words
        assert words in str(answer)
        assert answer.exit_code == 3


def test_one_failure_alone_is_raised() -> None:
    with pytest.raises(TraceFailedError, match="adamw_8bit"):
        run(TraceSpec.from_dict({**BASE, "optim": "adamw"}))


@pytest.mark.parametrize(
    ("options", "words", "command"),
    [
        ({"optim": "galore_adamw"}, "optim=galore_adamw needs the package galore-torch", 'pip install "galore-torch"'),
        ({"optim": "grokadamw"}, "needs the package grokadamw", 'pip install "grokadamw"'),
    ],
)
def test_a_missing_package_is_named_with_the_command(options: dict[str, Any], words: str, command: str) -> None:
    with pytest.raises(UnavailableError, match=words) as caught:
        run(TraceSpec.from_dict({**BASE, **options}))
    assert (caught.value.exit_code, caught.value.hint, caught.value.code) == (4, command, "missing_package")


def test_a_worker_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TraceFailedError, match="worker died"):
        run(TraceSpec.from_dict(BASE))


def test_a_trace_that_takes_too_long_is_reported() -> None:
    with pytest.raises(TraceFailedError, match="did not finish"):
        run(TraceSpec.from_dict(BASE), timeout_s=0.01)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, memplan.trace, memplan.trace.estimate; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
