"""Small recipes, and measured results that were never measured: shapes for tests, not readings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from memplan.measure.estimate import measured_spec
from memplan.measure.result import Death, DeviceReading, MeasureOptions, MeasureResult, PhaseReading
from memplan.measure.runner import Runner
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.spec import TraceSpec
from memplan.units import MIB

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def phase(step: int, name: str, peak: int, end: int) -> PhaseReading:
    return PhaseReading(
        step=step,
        phase=name,
        peak_allocated_bytes=peak * MIB,
        end_allocated_bytes=end * MIB,
        peak_reserved_bytes=(peak + 20) * MIB,
        end_reserved_bytes=(peak + 20) * MIB,
        peak_active_bytes=peak * MIB,
        peak_requested_bytes=peak * MIB - 1000,
    )


@pytest.fixture(scope="session")
def on_the_cpu() -> tuple[TraceSpec, MeasureResult]:
    """Real steps of the small Llama on the CPU, in a process of their own."""
    recipe = Recipe(model=LLAMA, sequence_length=64, micro_batch_size=2, attn_implementation="eager")
    spec = measured_spec(resolve(recipe), device="cpu")
    with Runner() as runner:
        return spec, runner.run(spec, MeasureOptions(device="cpu", history=True))


@pytest.fixture
def invented() -> MeasureResult:
    """What a run on a GPU could look like; the numbers are made up to be checked by hand."""
    return MeasureResult(
        spec=dataclasses.asdict(TraceSpec(model_config=LLAMA)),
        options=MeasureOptions(),
        outcome="ok",
        phases=(
            phase(0, "load", 110, 100),
            phase(1, "forward", 300, 280),
            phase(1, "backward", 400, 200),
            phase(1, "optimizer_step", 420, 300),
            phase(2, "forward", 500, 480),
            phase(2, "backward", 600, 400),
            phase(2, "optimizer_step", 450, 300),
        ),
        resident={"weights": 100 * MIB, "gradients": 100 * MIB, "optimizer_states": 200 * MIB},
        parameters={"total": 50 * MIB, "trainable": 50 * MIB},
        device=DeviceReading(
            torch_total_bytes=80_000 * MIB,
            nvml_total_bytes=81_559 * MIB,
            nvml_driver_reserved_bytes=400 * MIB,
            used_before_bytes=500 * MIB,
            used_bytes=1620 * MIB,
            reserved_bytes=620 * MIB,
        ),
        environment={"device": "cuda", "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0"},
        host_peak_bytes=900 * MIB,
    )


@pytest.fixture
def dead(invented: MeasureResult) -> MeasureResult:
    """The same run, dead in its first backward under a limit."""
    return dataclasses.replace(
        invented,
        options=MeasureOptions(capacity_bytes=410 * MIB),
        outcome="out_of_memory",
        phases=invented.phases[:3],
        death=Death(
            step=1, phase="backward", where="backward of step 1", message="CUDA out of memory.", frames=("a.py:1 f",)
        ),
    )
