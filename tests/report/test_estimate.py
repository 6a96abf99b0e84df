"""What the report of an estimate says."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import memplan
from memplan.estimate import Estimate, Fits
from memplan.report import Bar, Bullets, Table
from memplan.report.estimate import breakdown, estimate_report, headline, run_words
from memplan.units import GIB, MIB


@cache
def _estimate(gpu: str | None = "rtx-4090", **keys: Any) -> Estimate:
    more = {"gpu": gpu} if gpu else {}
    return memplan.estimate(model="mistralai/Mistral-7B-v0.1", method="qlora", **more, **keys)


def _judged(**changes: Any) -> Estimate:
    answer = _estimate()
    assert answer.verdict_report is not None
    return answer.model_copy(update={"verdict_report": answer.verdict_report.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("answer", "sentence", "tone"),
    [
        (
            _judged(expected_bytes=14 * GIB, upper_bytes=17 * GIB, fits=Fits.FITS),
            "Fits on RTX 4090 24GB: 14.0 GiB expected, at most 17.0 GiB of 23.5 GiB usable",
            "good",
        ),
        (
            _judged(expected_bytes=22 * GIB, upper_bytes=26 * GIB, fits=Fits.UNCERTAIN),
            "Uncertain on RTX 4090 24GB: 22.0 GiB expected, at most 26.0 GiB of 23.5 GiB usable",
            "unsure",
        ),
        (
            _judged(expected_bytes=30 * GIB, headroom_bytes=-GIB, fits=Fits.DOES_NOT_FIT),
            "Does not fit on RTX 4090 24GB: 30.0 GiB expected, 23.5 GiB usable, 1.0 GiB too much",
            "bad",
        ),
        (
            _judged(expected_bytes=24 * GIB + MIB, usable_bytes=24 * GIB, headroom_bytes=-MIB, fits=Fits.DOES_NOT_FIT),
            "Does not fit on RTX 4090 24GB: 24.001 GiB expected, 24.000 GiB usable, 1.0 MiB too much",
            "bad",
        ),
    ],
)
def test_headline(answer: Estimate, sentence: str, tone: str) -> None:
    assert (headline(answer).sentence, headline(answer).tone) == (sentence, tone)


def test_headline_without_a_gpu() -> None:
    assert headline(_estimate(None)).sentence.endswith(" GiB on the device at its peak; no GPU is named")
    assert headline(_estimate(None, stack="unsloth", packing=False)).sentence.startswith("Needs at least ")


def test_headline_of_what_is_not_covered() -> None:
    sentence = headline(_estimate(stack="unsloth", packing=False)).sentence
    assert sentence.startswith("Uncertain on RTX 4090 24GB: at least ")
    assert sentence.endswith(" of 23.5 GiB usable; not everything is covered")


def test_what_is_not_covered_stands_before_the_figures() -> None:
    blocks = estimate_report(_estimate(stack="unsloth", packing=False)).blocks
    place = next(index for index, block in enumerate(blocks) if isinstance(block, Bullets))
    (text,) = blocks[place].items  # type: ignore[union-attr]
    assert text.startswith("under stack unsloth: padded batches (packing=false), whose layers it compiles")
    assert place < next(index for index, block in enumerate(blocks) if isinstance(block, Table))


def test_the_bar_is_the_device() -> None:
    answer = _estimate()
    (bar,) = (block for block in estimate_report(answer).blocks if isinstance(block, Bar))
    assert sum(segment.size_bytes for segment in bar.segments) == answer.peak.device_bytes
    assert answer.verdict_report is not None
    assert bar.whole_bytes == answer.verdict_report.usable_bytes


def test_the_breakdown_names_every_level() -> None:
    table = breakdown(_estimate())
    assert [table.rows[index][0] for index in sorted(table.strong)] == ["live", "allocated", "reserved", "device"]
    assert table.rows[-1] == ("device", table.rows[-1][1], "100.0 %")


def test_shares_of_parts_add_up() -> None:
    table = breakdown(_estimate())
    parts = [row[2] for index, row in enumerate(table.rows) if index not in table.strong]
    shown = sum(float(text.removesuffix(" %").removeprefix("<")) for text in parts)
    assert shown == pytest.approx(100, abs=0.1 * len(parts))


def test_paged_state_is_told() -> None:
    facts = dict(estimate_report(_estimate(optim="paged_adamw_32bit")).blocks[2].rows)  # type: ignore[union-attr]
    assert facts["host memory"].endswith("of paged or offloaded state")


def test_a_run_in_words_says_what_is_offloaded() -> None:
    run = {
        "model": "gpt2",
        "method": "lora",
        "micro_batch_size": 4,
        "sequence_length": 2048,
        "activation_checkpointing": True,
    }
    words = "gpt2, lora, 4 × 2048 tokens, activation checkpointing"
    assert run_words(run) == words
    assert run_words({**run, "activation_offloading": "saved-tensors"}) == f"{words}, saved tensors offloaded"
