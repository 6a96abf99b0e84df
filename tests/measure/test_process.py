"""The whole path on the CPU: a process of its own, real steps, phases, and the trace as a witness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.errors import UnavailableError
from memplan.estimate import Estimate
from memplan.measure.estimate import measured_spec
from memplan.measure.result import MeasureOptions, MeasureResult
from memplan.measure.runner import MeasureFailedError, Runner, environment_of, read_answer
from memplan.measure.worker import measure
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.spec import TraceSpec
from tests.cli.conftest import Run, run  # noqa: F401 (a fixture)
from tests.measure.conftest import LLAMA

FORBIDDEN = ("memplan.engine", "memplan.families", "memplan.training_step", "memplan.resolve", "memplan.planner")


def test_measure_does_not_know_the_engine() -> None:
    code = (
        "import sys, memplan.measure.cli, memplan.measure.suite, memplan.measure.worker\n"
        f"print(*(name for name in {FORBIDDEN!r} if name in sys.modules), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_real_steps_in_a_process_of_their_own(on_the_cpu: tuple[TraceSpec, MeasureResult]) -> None:
    _, found = on_the_cpu
    names = [(entry.step, entry.phase) for entry in found.phases]
    steps = [(step, phase) for step in (1, 2, 3) for phase in ("forward", "backward", "optimizer_step")]
    assert names == [(0, "load"), *steps]
    weights, states = found.resident["weights"], found.resident["optimizer_states"]
    assert found.resident["gradients"] == weights
    # Adam's two moments; step counters of torch's default live on the host, which is the device here.
    assert 2 * weights <= states <= 2 * weights + 512 * 40
    by_name = {(entry.step, entry.phase): entry for entry in found.phases}
    # Nothing leaks: every step ends as the second did, with states beside weights.
    ends = {by_name[step, "optimizer_step"].end_allocated_bytes for step in (2, 3)}
    assert len(ends) == 1
    assert by_name[2, "optimizer_step"].end_allocated_bytes >= weights + states
    assert by_name[2, "forward"].peak_allocated_bytes > by_name[1, "forward"].peak_allocated_bytes
    assert sum(found.history) == found.phases[-1].end_allocated_bytes
    starts = [entry.first_event for entry in found.phases]
    assert starts == sorted(starts)
    assert found.max_reserved_bytes is None
    assert any("for testing" in note for note in found.notes)
    assert found.outcome == "ok"


def test_no_gpu_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnavailableError) as caught:
        measure(measured_spec(resolve(Recipe(model=LLAMA, sequence_length=16))), MeasureOptions())
    assert (caught.value.code, caught.value.exit_code) == ("no_gpu", 4)
    assert "--device cpu" in caught.value.hint


def test_a_process_that_is_out_of_time() -> None:
    spec = measured_spec(resolve(Recipe(model=LLAMA, sequence_length=16)), device="cpu")
    with Runner() as runner, pytest.raises(MeasureFailedError, match="did not finish within") as caught:
        runner.run(spec, MeasureOptions(device="cpu"), timeout_s=0.05)
    assert caught.value.code == "measure_timeout"


def test_a_process_that_waits_is_ended() -> None:
    runner = Runner(ahead=True)
    runner._waiting = runner._next({})
    process = runner._waiting
    runner.close()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("out", "code", "error"),
    [
        ('{"error": {"kind": "unavailable", "code": "no_peft", "message": "m", "hint": ""}}', 3, UnavailableError),
        ('{"error": {"kind": "failed", "code": "measure_failed", "message": "m", "hint": ""}}', 3, MeasureFailedError),
        ("", -9, MeasureFailedError),
    ],
)
def test_answers_that_are_errors(out: str, code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_answer(out, code, "Killed")


def test_the_command(
    run: Run,  # noqa: F811
    on_the_cpu: tuple[TraceSpec, MeasureResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[TraceSpec, MeasureOptions, float]] = []

    def answer(self: Runner, spec: TraceSpec, options: MeasureOptions, *, timeout_s: float) -> MeasureResult:
        asked.append((spec, options, timeout_s))
        return on_the_cpu[1]

    monkeypatch.setattr(Runner, "run", answer)
    history = tmp_path / "history.json"
    done = run("measure", "--model", json.dumps(LLAMA), "--sequence-length", "64", "--micro-batch-size", "2",
               "--attn-implementation", "eager", "--device", "cpu", "--json", "--history", str(history),
               "--timeout", "50")  # fmt: skip
    found = Estimate.model_validate_json(done.out)
    assert (done.code, str(found.provenance), found.versions["device"]) == (0, "measured", "cpu")
    assert asked == [(on_the_cpu[0], MeasureOptions(device="cpu", history=True), 50)]
    assert found.verdict_report is None
    assert any("on the CPU for testing" in text for text in found.assumptions)
    assert MeasureResult.from_json(history.read_text(encoding="utf-8")) == on_the_cpu[1]
    text = run("measure", "--model", json.dumps(LLAMA), "--sequence-length", "64", "--device", "cpu")
    assert "not a measurement of a GPU" in text.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "cor"), "core"),
        (("--suite", "core", "--only", "nothing"), "--list"),
        (("--suite", "core", "--model", "gpt2"), "its own recipes"),
        (("--model", "openai-community/gpt2", "--minutes", "2"), "belongs to a suite"),
        (("--model", "openai-community/gpt2", "--device", "tpu"), "cuda"),
        (("--model", "openai-community/gpt2", "--device", "cpu", "--capacity", "2GiB"), "has none"),
        (("--unpack", "x"), "--out"),
        ((), "no model"),
    ],
)
def test_options_that_make_no_sense(run: Run, arguments: tuple[str, ...], words: str) -> None:  # noqa: F811
    done = run("measure", *arguments)
    assert done.code == 2
    assert words in done.err


def test_the_plan_of_a_suite_needs_no_gpu(run: Run) -> None:  # noqa: F811
    done = run("measure", "--suite", "core", "--only", "2l-qlora", "--list", "--json")
    rows = json.loads(done.out)["cells"]
    assert [row["cell"] for row in rows] == ["2l-qlora", "2l-qlora-double", "2l-qlora-amp"]
    assert all(row["predicted_reserved_bytes"] >= row["predicted_allocated_bytes"] > 2**30 for row in rows)
    text = run("measure", "--suite", "core", "--only", "2l-qlora", "--list")
    assert "3 cells" in text.out


def test_the_environment_of_expandable_segments() -> None:
    spec = measured_spec(resolve(Recipe(model=LLAMA, sequence_length=16, expandable_segments=True)))
    assert environment_of(spec) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_a_suite_without_a_gpu_says_how_to_see_its_plan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("memplan.measure.cli.measured_gpu_name", lambda: None)
    done = run("measure", "--suite", "core", "--only", "2l-qlora")
    assert (done.code, done.out) == (4, "")
    assert "there is none here" in done.err
    assert "3 cells are ready: memplan measure --suite core --only 2l-qlora --list prints them" in done.err
