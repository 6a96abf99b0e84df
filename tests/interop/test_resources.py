"""Slurm, Kubernetes, and the predicted step in PyTorch's memory viewer."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

import memplan
from memplan.catalog.gpus import get_gpu
from memplan.errors import InputError, UnsupportedError
from memplan.estimate import Component
from memplan.interop.memory_viz import predicted, snapshot_bytes
from memplan.interop.scheduler import HOST_ALLOWANCE_BYTES, host_memory_bytes, kubernetes, product_labels, slurm
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.forms import Terms
from memplan.step.replay import Program, Written
from memplan.training_step import recordings, run_of
from memplan.units import GIB

LLAMA = "meta-llama/Llama-3.2-1B"
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 320}  # fmt: skip


def test_slurm() -> None:
    answer = memplan.estimate(model=LLAMA, method="qlora", optim="paged_adamw_8bit", gpu="h100", sequence_length=512)
    text = slurm(answer, command="python sft.py")
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --gres=gpu:h100:1" in lines
    asked = next(int(line.removeprefix("#SBATCH --mem=").removesuffix("G")) for line in lines if "--mem=" in line)
    assert 0 <= asked * GIB - host_memory_bytes(answer) < GIB
    assert host_memory_bytes(answer) > answer.host_bytes + answer.component_bytes(Component.WEIGHTS)
    assert lines[-1] == "srun python sft.py"
    with pytest.raises(InputError, match="needs to know the GPU"):
        slurm(memplan.estimate(model=LLAMA))


def test_a_run_that_does_not_fit_says_so_in_its_script() -> None:
    assert "(does not fit)" in slurm(memplan.estimate(model="meta-llama/Llama-3.1-8B", gpu="t4"))


def test_kubernetes() -> None:
    answer = memplan.estimate(model=LLAMA, method="lora", gpu="h100", sequence_length=512)
    job = yaml.safe_load(kubernetes(answer, image="pytorch", command="python sft.py", name="sft"))
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (job["kind"], container["image"], container["command"]) == ("Job", "pytorch", ["python", "sft.py"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    product, memory = terms[0]["matchExpressions"]
    assert product == {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100-80GB-HBM3"]}
    assert memory["key"] == "nvidia.com/gpu.memory"
    assert int(memory["values"][0]) * 2**20 < get_gpu("h100").usable_bytes


@pytest.mark.parametrize(
    ("gpu", "labels"),
    [
        ("rtx-4090", ("NVIDIA-GeForce-RTX-4090",)),
        ("a100-80gb", ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe")),
        ("l40s", ("NVIDIA-L40S",)),
        ("mi300x", ()),
    ],
)
def test_labels_are_the_names_that_the_driver_reports(gpu: str, labels: tuple[str, ...]) -> None:
    assert product_labels(get_gpu(gpu)) == labels


def test_the_allowance_is_stated() -> None:
    answer = memplan.estimate(model=LLAMA, gpu="h100", sequence_length=128)
    assert f"{HOST_ALLOWANCE_BYTES // GIB} GiB allowed for Python and data" in slurm(answer)


# -- memory_viz -------------------------------------------------------------------------------------------

RUNS: list[dict[str, Any]] = [
    {"method": "lora", "dtype": "bfloat16"},
    {"method": "full", "gradient_accumulation_steps": 4, "optim": "adamw_torch"},
    {"method": "qlora", "optim": "paged_adamw_8bit"},
    {"method": "lora", "empty_cache_steps": 1},
    {"method": "lora", "activation_checkpointing": True, "precision": "amp", "dtype": "bfloat16"},
]


@pytest.mark.parametrize("keys", RUNS)
def test_the_events_are_those_that_the_allocator_plays(keys: dict[str, Any]) -> None:
    recipe = Recipe(model=TINY, sequence_length=32, **keys)
    resolved = resolve(recipe)
    run = run_of(recordings(resolved, prepare(resolved)), resolved, prepare(resolved))
    terms = Terms(run.micro_steps[0].infos)
    program = Program(run, Written(terms))
    sizes = terms.recorded()
    table = [sizes[term] * weight for term, weight in program.written.table]
    births: dict[int, int] = {}
    played = []
    flushes = []
    for key, number in zip(program.keys, program.sizes, strict=True):
        if not key:  # torch.cuda.empty_cache()
            flushes.append(len(played))
            continue
        if number >= 0:
            births[key] = len(births)
        played.append((births[key], table[number] if number >= 0 else 0))
    result = predicted(recipe)
    shown = [(abs(event) - 1, result.storages[event].block_bytes if event > 0 else 0) for event in result.events]
    assert shown == played
    assert result.cache_flushes == flushes


@pytest.mark.parametrize("keys", RUNS)
def test_torch_reads_the_snapshot(keys: dict[str, Any]) -> None:
    viz = pytest.importorskip("torch.cuda._memory_viz")
    recipe = Recipe(model=TINY, sequence_length=32, **keys)
    data = snapshot_bytes(recipe)
    assert data[:2] == b"\x80\x04"
    found = pickle.loads(data)
    assert "segments" in viz.segsum(found)
    assert viz.trace(found)
    peak = live = 0
    for entry in found["device_traces"][0]:
        live += {"alloc": 1, "free_completed": -1}.get(entry["action"], 0) * entry["size"]
        peak = max(peak, live)
    assert peak == memplan.estimate(recipe).peak.live_bytes
    names = {frame["name"] for entry in found["device_traces"][0] for frame in entry["frames"]}
    assert any("layers.1" in name or "layers.{0..2}" in name or "[1]" in name for name in names), sorted(names)[:20]


def test_what_is_not_walked_is_not_shown() -> None:
    with pytest.raises(UnsupportedError, match="no step to show"):
        snapshot_bytes(Recipe(model=TINY, precision="master", sequence_length=32))


def test_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from memplan.cli.app import app

    out = tmp_path / "step.pickle"
    model = '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 320}'
    common = ["export", "--model", model, "--sequence-length", "16", "--to", "memory-viz"]
    assert CliRunner().invoke(app, [*common, "--out", str(out)]).exit_code == 0
    assert pickle.loads(out.read_bytes())["segments"]
    refused = CliRunner().invoke(app, common)
    assert refused.exit_code == 2
    assert "say where to write it" in refused.stderr
