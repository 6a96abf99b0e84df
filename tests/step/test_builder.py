"""Layers that repeat: which groups are found, and that a group executed once stands for every one of them."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.estimate import Phase
from memplan.recipe import Recipe
from memplan.step.builder import Builder
from memplan.step.settings import StepSettings
from memplan.training_step import recorded_step
from tests.step.small_runs import prepared

GEMMA2: dict[str, Any] = {
    "model_type": "gemma2", "hidden_size": 128, "intermediate_size": 208, "num_hidden_layers": 9, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 131, "sliding_window": 16,
}  # fmt: skip
GEMMA3: dict[str, Any] = {**GEMMA2, "model_type": "gemma3_text", "num_hidden_layers": 20, "sliding_window_pattern": 6}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True},
    {"activation_checkpointing": "reentrant", "method": "lora", "peft": {"target_modules": "all-linear"}},
    {"method": "qlora", "gradient_accumulation_steps": 3},
    {"padding": True, "attn_implementation": "eager"},
    {"precision": "amp", "keep_outputs": True, "use_cache": True},
    {"method": "lora", "peft": {"layers_to_transform": [1, 3, 5, 7]}, "expandable_segments": True},
]


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        ("a", [(0, 1, 1)]),
        ("aaaaaa", [(0, 1, 6)]),
        ("abbbb", [(0, 1, 1), (1, 1, 4)]),
        ("abababab", [(0, 2, 4)]),
        ("ababababa", [(0, 2, 4), (8, 1, 1)]),
        ("abab", [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1)]),
        ("aaabaaabaaab", [(0, 4, 3)]),
        ("caabaabaabaab", [(0, 1, 1), (1, 3, 4)]),
        ("", []),
    ],
)
def test_groups(kinds: str, runs: list[tuple[int, int, int]]) -> None:
    settings = StepSettings(batch=1, sequence=1, autocast=None, attn_implementation="sdpa", checkpointing=None)
    found = Builder(settings, {}).runs("layers", len(kinds), lambda index: kinds[index])
    assert [(run.first, run.group, run.count) for run in found] == runs
    executed = [part for run in found for part in run.parts(fold=True)]
    assert sum(layers * repeats for _, layers, repeats in executed) == len(kinds)
    assert [part for run in found for part in run.parts(fold=False)] == [(index, 1, 1) for index in range(len(kinds))]


@pytest.mark.parametrize("model", [GEMMA2, GEMMA3], ids=lambda model: model["model_type"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: " ".join(map(str, setting)) or "plain")
def test_a_group_stands_for_every_layer(model: dict[str, Any], setting: dict[str, Any]) -> None:
    recipe = Recipe(model=model, micro_batch_size=2, sequence_length=32, **{"optim": "adamw_torch", **setting})
    resolved, found = prepared(recipe)
    figures = []
    for fold in (True, False):
        step, sizes = recorded_step(resolved, found, fold=fold)
        assert step.program is not None
        phases = [
            (
                phase.at,
                phase.peak_bytes,
                phase.end_bytes,
                phase.components if phase.at.phase is Phase.BACKWARD else None,
            )
            for phase in step.walker.run(sizes).phases
        ]
        report = step.program.play(sizes, expandable_segments=resolved["expandable_segments"])
        figures.append((phases, report.max_allocated_bytes, report.max_reserved_bytes, report.phases))
    assert figures[0] == figures[1]
    folded, executed = (recorded_step(resolved, found, fold=fold)[0].recordings[0] for fold in (True, False))
    assert len(folded.infos) < len(executed.infos)
    assert any(segment.count > 1 for segment in folded.segments)
