"""Margins from records: the quantile by hand, what counts, and that too few runs never narrow a bound."""

from __future__ import annotations

import dataclasses
import random

import pytest

from memplan.catalog import calibration
from memplan.catalog.calibration import TABLE, Row, Run, RunKind, margin, run_of, stated_bytes
from memplan.catalog.gpus import get_gpu
from memplan.evidence.calibration import (
    ALPHA,
    LEAST_CONFIGURATIONS,
    LEAST_MODELS,
    Point,
    calibration_table,
    conformal_bound,
    points,
    rows_of,
)
from memplan.units import GIB
from memplan.verdict import judge

T4 = get_gpu("t4")
LORA = Run(RunKind.ADAPTER, "llama")


def test_the_committed_table_is_what_the_records_give() -> None:
    """Regenerate it with `python -m memplan.evidence calibration`, and look at the difference before committing it."""
    assert TABLE.read_text(encoding="utf-8") == calibration_table()


@pytest.mark.parametrize(("alpha", "least"), [(0.05, 19), (0.02, 49), (0.01, 99)])
def test_the_least_number_for_a_level(alpha: float, least: int) -> None:
    assert conformal_bound([0.1] * (least - 1), alpha) is None
    assert conformal_bound([0.1] * least, alpha) == 0.1
    assert LEAST_CONFIGURATIONS == 49


def test_the_quantile_by_hand() -> None:
    excesses = [index / 1000 for index in range(1, 100)]  # n = 99: rank ceil(100 * 0.98) = 98
    assert conformal_bound(excesses, 0.02) == 0.098
    assert conformal_bound([-0.1] * 60, 0.02) == 0.0
    assert conformal_bound([], 0.02) is None


def test_the_bound_covers_what_it_says() -> None:
    """Over many calibration sets, a further run exceeds the bound no more often than alpha."""
    rng = random.Random(7)
    exceeded = 0
    for _ in range(4000):
        drawn = [rng.gauss(0, 0.05) for _ in range(60)]
        bound = conformal_bound(drawn[:-1], ALPHA)
        assert bound is not None
        exceeded += drawn[-1] > bound
    assert exceeded / 4000 < ALPHA + 3 * (ALPHA * (1 - ALPHA) / 4000) ** 0.5


def made(count: int, *, models: int = LEAST_MODELS, counts: bool = True, excess: float = 0.03) -> list[Point]:
    return [
        Point(
            where="sm75",
            kind=RunKind.ADAPTER,
            key=str(index),
            model=f"model-{index % models}",
            family="llama",
            predicted_bytes=(index + 1) * GIB // 10,
            excess=excess,
            counts=counts,
            date="2026-01-02",
        )
        for index in range(count)
    ]


def test_enough_runs_of_enough_models_narrow_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows_of(made(49))
    assert (row.bound_ppm, row.counted, row.models) == (30_000, 49, 4)
    monkeypatch.setattr(calibration, "rows", lambda: {("sm75", RunKind.ADAPTER): row})
    inside = margin(T4, LORA, 2 * GIB, 3 * GIB)
    assert inside.bytes == 2 * GIB * 3 // 100
    assert "calibrated on 49 configurations of 4 models (sm75, adapter), 2026-01-02" in inside.text
    # Outside of what was measured the stated margin holds: a larger run, another family, another kind, another card.
    for gpu, run, reserved in (
        (T4, LORA, 50 * GIB),
        (T4, Run(RunKind.ADAPTER, "gpt2"), 2 * GIB),
        (T4, Run(RunKind.FULL, "llama"), 2 * GIB),
        (get_gpu("l4"), LORA, 2 * GIB),
        (T4, None, 2 * GIB),
    ):
        found = margin(gpu, run, reserved, 3 * GIB)
        assert found.bytes == stated_bytes(3 * GIB)
        assert found.text.startswith("stated, not calibrated")


@pytest.mark.parametrize(
    "members",
    [made(48), made(60, models=3), made(60, counts=False)],
    ids=["too few", "too alike", "told from readings"],
)
def test_too_few_or_unlike_runs_never_narrow_the_bound(members: list[Point], monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows_of(members)
    assert row.bound_ppm is None
    monkeypatch.setattr(calibration, "rows", lambda: {("sm75", RunKind.ADAPTER): row})
    found = margin(T4, LORA, 2 * GIB, 3 * GIB)
    assert found.bytes == stated_bytes(3 * GIB)
    assert f"{len(members)} measured configurations are near" in found.text


def test_runs_that_exceed_the_stated_margin_widen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows_of([*made(3, counts=False), *made(1, counts=False, excess=1.5)[:1]])
    monkeypatch.setattr(calibration, "rows", lambda: {("sm75", RunKind.ADAPTER): row})
    found = margin(T4, LORA, 4 * GIB, 4 * GIB + 1)
    assert found.bytes == 6 * GIB
    assert "widened" in found.text
    assert judge(T4, 4 * GIB, False, LORA).upper_bytes > judge(T4, 4 * GIB, False).upper_bytes


def test_a_family_with_few_configurations_is_not_among_them() -> None:
    few = [dataclasses.replace(point, family="gpt2", key=f"g{point.key}") for point in made(4)]
    (row,) = rows_of([*made(49), *few])
    assert (row.families, row.counted) == (("llama",), 53)


def test_repeats_of_a_configuration_count_once_with_their_worst() -> None:
    keys = [(point.where, point.key) for point in points()]
    assert len(set(keys)) == len(keys)


def test_every_committed_row_says_why_it_is_not_narrower() -> None:
    for row in calibration.rows().values():
        assert (row.bound_ppm is None) or (row.counted >= LEAST_CONFIGURATIONS and row.models >= LEAST_MODELS)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"method": "full"}, RunKind.FULL),
        ({"method": "bitfit"}, RunKind.FULL),
        ({"method": "lora"}, RunKind.ADAPTER),
        ({"method": "qlora", "load_in_4bit": True}, RunKind.QUANTIZED_ADAPTER),
        ({"method": "rslora", "peft": {"peft_type": "LORA", "use_rslora": True}}, RunKind.ADAPTER),
        ({"method": "lora", "peft": {"peft_type": "LORA", "use_dora": True}}, RunKind.OTHER_ADAPTER),
        ({"method": "dora"}, RunKind.OTHER_ADAPTER),
        ({"method": "oft", "peft": {"peft_type": "OFT"}}, RunKind.OTHER_ADAPTER),
        ({"method": "oft", "load_in_4bit": True}, RunKind.QUANTIZED_OTHER_ADAPTER),
        ({"method": "prompt_tuning", "peft": {"peft_type": "PROMPT_TUNING"}}, RunKind.PROMPT),
        ({"method": "prefix_tuning", "load_in_4bit": True}, RunKind.PROMPT),
        ({"method": "lora", "load_in_8bit": True}, RunKind.QUANTIZED_ADAPTER),
        ({"method": "lora", "quantization_config": {"quant_method": "gptq"}}, RunKind.QUANTIZED_ADAPTER),
    ],
)
def test_kinds_of_runs(values: dict[str, object], kind: RunKind) -> None:
    assert run_of(values, "llama") == Run(kind, "llama")


def test_rows_are_read_as_they_are_written() -> None:
    assert sorted(calibration.rows().values(), key=lambda row: (row.where, row.kind)) == [
        dataclasses.replace(row) for row in rows_of(points())
    ]
    assert all(isinstance(row, Row) for row in calibration.rows().values())
