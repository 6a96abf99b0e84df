"""Results across the process boundary, and what is worked out from them."""

from __future__ import annotations

import dataclasses

from memplan.estimate import Component, Fits, Provenance
from memplan.measure.estimate import to_estimate
from memplan.measure.result import DeviceReading, MeasureResult
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.units import MIB
from tests.measure.conftest import LLAMA


def test_json_round_trips(invented: MeasureResult, dead: MeasureResult) -> None:
    for result in (invented, dead):
        assert MeasureResult.from_json(result.to_json()).to_json() == result.to_json()


def test_levels(invented: MeasureResult) -> None:
    assert invented.max_allocated_bytes == 600 * MIB
    assert invented.max_reserved_bytes == 620 * MIB
    assert invented.device.own_bytes == 1120 * MIB
    assert invented.device.context_bytes == 500 * MIB
    assert invented.max_device_bytes == 1120 * MIB


def test_the_drivers_figure_for_the_process_is_preferred(invented: MeasureResult) -> None:
    device = dataclasses.replace(invented.device, process_bytes=1000 * MIB)
    assert device.context_bytes == 380 * MIB


def test_without_the_driver_there_is_no_device_level(invented: MeasureResult) -> None:
    result = dataclasses.replace(invented, device=DeviceReading(torch_total_bytes=1, reserved_bytes=1))
    assert result.max_device_bytes is None


def test_an_estimate_in_the_common_vocabulary(invented: MeasureResult) -> None:
    answer = to_estimate(invented, resolve(Recipe(model=LLAMA, sequence_length=16, gpu="h100-sxm-80gb")))
    assert answer.provenance is Provenance.MEASURED
    assert answer.peak.allocated_bytes == 600 * MIB
    assert answer.peak.reserved_bytes == 620 * MIB
    assert answer.peak.device_bytes == 1120 * MIB
    assert (answer.peak.step, answer.peak.phase) == (2, "backward")
    assert answer.component_bytes(Component.WEIGHTS) == 100 * MIB
    assert answer.component_bytes(Component.OPTIMIZER_STATES) == 200 * MIB
    assert answer.component_bytes(Component.ACTIVATIONS) == 300 * MIB - 1000
    assert answer.bytes_per_parameter.total == 2 + 2 + 4
    assert len(answer.timeline) == 7
    verdict = answer.verdict()
    assert verdict.fits is Fits.FITS
    assert verdict.usable_bytes == 80_000 * MIB
    assert "measured on this card" in verdict.margin


def test_another_card_is_judged_as_any_estimate(invented: MeasureResult) -> None:
    answer = to_estimate(invented, resolve(Recipe(model=LLAMA, sequence_length=16, gpu="t4")))
    assert "measured on this card" not in answer.verdict().margin


def test_a_death_does_not_fit(dead: MeasureResult) -> None:
    answer = to_estimate(dead, resolve(Recipe(model=LLAMA, sequence_length=16)))
    assert answer.verdict().fits is Fits.DOES_NOT_FIT
    assert answer.verdict().usable_bytes == 410 * MIB
    assert any("backward of step 1" in text for text in answer.assumptions)
    # The optimizer's states were not there yet.
    assert answer.component_bytes(Component.OPTIMIZER_STATES) == 0
