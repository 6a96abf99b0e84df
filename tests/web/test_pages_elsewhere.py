"""Every GPU and every method: the tables say what single estimates say."""

from __future__ import annotations

import re

import pytest

from memplan import estimate
from memplan.catalog.gpus import list_gpus
from memplan.errors import MemplanError
from memplan.estimate import Fits
from memplan.methods import list_methods
from memplan.recipe import Recipe
from memplan.web.pages.changes import changes_html, changes_of
from memplan.web.pages.elsewhere import every_gpu, every_method

RECIPES = (
    {"model": "openai-community/gpt2", "method": "lora", "micro_batch_size": 2, "gpu": "t4"},
    {"model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "method": "qlora", "precision": "amp", "sequence_length": 512},
    {"model": "openai-community/gpt2", "method": "full", "precision": "amp", "attn_implementation": "eager"},
)


@pytest.mark.parametrize("keys", RECIPES)
def test_every_gpu_has_the_verdict_of_its_own_estimate(keys: dict[str, object]) -> None:
    places = every_gpu(Recipe(**keys))
    assert [place.gpu for place in places] == list(list_gpus())
    for place in places:
        if place.verdict is None:
            with pytest.raises(MemplanError, match=re.escape(place.why_not)):
                estimate(**{**keys, "gpu": place.gpu.id})
            continue
        own = estimate(**{**keys, "gpu": place.gpu.id})
        assert place.verdict == own.verdict_report
        assert place.is_floor == bool(own.unsupported)
        assert Recipe(**place.keys).gpu == place.gpu.id
    assert [place.gpu.id for place in places if place.is_current] == ([keys["gpu"]] if "gpu" in keys else [])


@pytest.mark.parametrize("keys", RECIPES)
def test_every_method_has_its_own_estimate(keys: dict[str, object]) -> None:
    ways = every_method(Recipe(**keys))
    assert [way.method.name for way in ways] == [method.name for method in list_methods()]
    assert [way.method.name for way in ways if way.is_current] == [keys["method"]]
    for way in ways:
        if way.why_not:
            assert way.fits is None
            continue
        own = estimate(**way.keys)
        assert own.recipe["method"] == way.method.name
        assert own.peak.device_bytes == way.device_bytes
        assert bool(own.unsupported) == way.is_floor
        assert own.verdict("t4").fits if way.fits is Fits.FITS else True
        assert not (way.is_floor and way.fits is Fits.FITS)


def test_settings_of_a_method_are_dropped_only_where_they_have_no_use() -> None:
    recipe = Recipe(model="openai-community/gpt2", method="lora", lora_r=4, lora_dropout=0.1)
    ways = {way.method.name: way for way in every_method(recipe)}
    assert ways["lora"].dropped == ()
    assert ways["dora"].dropped == ()
    assert ways["full"].dropped == ("lora_r", "lora_dropout")


def test_only_what_fits_is_offered_as_fitting() -> None:
    recipe = Recipe(model="mistralai/Mistral-7B-v0.1", method="lora", micro_batch_size=2, gpu="rtx-4090")
    changes = changes_of(recipe)
    assert not changes.fits_already
    assert changes.best
    for proposal in changes.best:
        assert proposal.fits is Fits.FITS
        own = estimate(**proposal.recipe)
        assert own.verdict_report is not None
        assert own.verdict_report.fits is Fits.FITS
        assert own.peak.device_bytes == proposal.peak.device_bytes
    tiers = [proposal.tier for proposal in changes.best]
    assert tiers == sorted(tiers)
    for place in changes.gpus:
        assert place.verdict is not None
        assert place.verdict.fits is Fits.FITS


def test_where_nothing_fits_it_says_so() -> None:
    page = changes_html({"model": "meta-llama/Llama-3.1-405B", "method": "full", "gpu": "rtx-3060-12gb"}, "")
    assert "Nothing that was tried can be said to fit." in page
    assert "fits on no single GPU of the catalogue" in page


def test_where_it_fits_the_room_is_told() -> None:
    recipe = Recipe(model="TinyLlama/TinyLlama-1.1B-Chat-v1.0", method="lora", lora_r=4, sequence_length=256, gpu="t4")
    changes = changes_of(recipe)
    assert changes.fits_already
    found = {room.boundary.key: room for room in changes.room}
    assert set(found) == {"micro_batch_size", "sequence_length"}
    for key, room in found.items():
        assert estimate(**room.keys).verdict().fits is Fits.FITS
        if room.boundary.next_value is not None:
            assert estimate(**{**room.keys, key: room.boundary.next_value}).verdict().fits is not Fits.FITS


def test_what_is_not_covered_is_never_said_to_fit() -> None:
    keys = {"model": "openai-community/gpt2", "method": "lora", "gpu": "mi300x"}
    changes = changes_of(Recipe(**keys))
    assert changes.not_covered
    assert not changes.room
    assert not changes.best
    assert all(place.gpu.vendor == "NVIDIA" for place in changes.gpus)
    page = changes_html(keys, "")
    assert "Nothing that was tried can be said to fit." in page
    assert "Not covered here: " in page
    assert "the kernels of MI300X" in page


def test_without_a_gpu_there_is_nothing_to_search() -> None:
    assert changes_html({"model": "openai-community/gpt2", "method": "lora"}, "") == ""
