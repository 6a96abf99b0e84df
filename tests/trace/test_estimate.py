"""A trace as an `Estimate`: the recipe's keys reach the spec, and the invariants of every answer hold."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from trace_cases import LLAMA

import memplan
from memplan.errors import UnsupportedError
from memplan.estimate import Component, Estimate, Fits, Provenance
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace import Checkpointing, GpuArch
from memplan.trace.cli import answer
from memplan.trace.estimate import spec_of, trace

BASE: dict[str, Any] = {"model": LLAMA, "micro_batch_size": 2, "sequence_length": 128, "dtype": "bfloat16"}


def test_the_recipe_reaches_the_spec() -> None:
    spec = spec_of(
        resolve(
            Recipe(
                **BASE,
                method="qlora",
                lora_r=4,
                gpu="rtx-4090",
                optim="paged_adamw_8bit",
                max_grad_norm=0.5,
                activation_checkpointing="non-reentrant",
                gradient_accumulation_steps=3,
                padding=True,
            )
        )
    )
    assert spec.load_in_4bit
    assert spec.bnb_4bit_use_double_quant
    assert spec.peft is not None
    assert (spec.peft["peft_type"], spec.peft["r"]) == ("LORA", 4)
    assert spec.gpu_arch is GpuArch.SM89
    assert spec.checkpointing is Checkpointing.NON_REENTRANT
    assert (spec.optim, spec.max_grad_norm, spec.gradient_accumulation_steps) == ("paged_adamw_8bit", 0.5, 3)
    assert (spec.batch, spec.sequence, spec.padding) == (2, 128, True)
    assert spec.autocast == "bfloat16"


def test_amp_in_float16_scales_the_loss() -> None:
    spec = spec_of(resolve(Recipe(**{**BASE, "dtype": "float32"}, precision="amp", autocast_dtype="float16")))
    assert (spec.dtype, spec.autocast, spec.grad_scaler) == ("float32", "float16", True)


@pytest.mark.parametrize(
    "options", [{"gpus": 2}, {"stack": "unsloth", "packing": False}, {"precision": "master", "dtype": "bfloat16"}]
)
def test_what_a_trace_does_not_cover_is_said(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="does not cover"):
        spec_of(resolve(Recipe(**{**BASE, **options})))


def test_estimate_events_and_snapshot(tmp_path: Path) -> None:
    events, path = io.StringIO(), tmp_path / "snapshot.pickle"
    estimate = answer(resolve(Recipe(**BASE, method="lora", gpu="rtx-4090")), events=events, memory_viz=path)
    assert isinstance(estimate, Estimate)
    assert estimate.provenance is Provenance.TRACE
    assert estimate.parameters.trainable == sum(8 * (rows + columns) for rows, columns in [(256, 256), (128, 256)] * 2)
    assert estimate.component_bytes(Component.ADAPTERS) >= 4 * estimate.parameters.trainable
    assert estimate.bytes_per_parameter.weights == estimate.bytes_per_parameter.gradients == 4
    assert estimate.bytes_per_parameter.optimizer == pytest.approx(8, rel=0.01)
    assert estimate.verdict_report is not None
    assert estimate.verdict_report.fits is Fits.FITS
    assert next(entry.phase for entry in estimate.timeline) == "load"
    assert "torch" in estimate.versions
    lines = [json.loads(line) for line in events.getvalue().splitlines()]
    assert sum(line["change"] == "+" for line in lines) > 500
    assert max(line["live_bytes"] for line in lines) == estimate.peak.live_bytes
    logits = next(line for line in lines if line["module"] == "lm_head" and line["phase"] == "forward")
    assert (logits["shape"], logits["dtype"], logits["bytes"]) == ([256, 1000], "bfloat16", 256 * 1000 * 2)
    sums = sum(line["block_bytes"] * (1 if line["change"] == "+" else -1) for line in lines)
    assert sums == lines[-1]["live_bytes"]
    assert pickle.loads(path.read_bytes())["device_traces"]


def test_full_fine_tuning_counts_what_adam_needs() -> None:
    estimate = trace(resolve(Recipe(**{**BASE, "dtype": "float32"}, precision="fp32", optim="adamw_torch")))
    assert estimate.bytes_per_parameter.total == pytest.approx(16, rel=0.001)
    assert estimate.parameters.total == estimate.parameters.trainable


def test_outputs_that_end_with_backward_reserve_as_the_engine_says() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 2, "vocab_size": 32_000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    run = {"model": {**LLAMA, **sizes, **heads}, "micro_batch_size": 4, "sequence_length": 517, "method": "lora"}
    reserved = {}
    for kept in ("backward", True):
        recipe = Recipe(**{**BASE, **run}, optim="adamw_torch", keep_outputs=kept)
        peaks = [memplan.estimate(recipe).peak, trace(resolve(recipe)).peak]
        assert len({(peak.live_bytes, peak.allocated_bytes, peak.reserved_bytes) for peak in peaks}) == 1
        reserved[kept] = peaks[0].reserved_bytes
    assert reserved["backward"] < reserved[True]


def test_an_emptied_cache_reserves_as_the_engine_says() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "vocab_size": 32_000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    run = {"model": {**LLAMA, **sizes, **heads}, "micro_batch_size": 4, "sequence_length": 517}
    recipe = Recipe(**{**BASE, **run}, optim="adamw_torch", keep_outputs=True)
    reserved = {}
    for steps in (None, 1, 2):
        emptied = recipe.replace(empty_cache_steps=steps)
        peaks = [memplan.estimate(emptied).peak]
        if steps == 1:
            peaks.append(trace(resolve(emptied)).peak)
        assert len({(peak.live_bytes, peak.allocated_bytes, peak.reserved_bytes) for peak in peaks}) == 1
        reserved[steps] = peaks[-1].reserved_bytes
    assert reserved[1] < reserved[None] == reserved[2]
