from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from memplan.errors import InvalidValueError
from memplan.methods.targets import Matcher, compile_pattern, pattern_value
from tests.methods.matrix import architecture
from tests.methods.small import LLAMA, QWEN3_MOE

PATHS = [
    path
    for config in (LLAMA, QWEN3_MOE)
    for described in (architecture(config, "causal-lm"),)
    for path in (*described.by_path, *described.containers)
]

PARTS = st.sampled_from(
    [
        "q_proj",
        "v_proj",
        "self_attn",
        "mlp",
        "layers",
        "0",
        "1",
        "embed_tokens",
        "lm_head",
        "model",
        "experts",
        "roj",
        "",
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(".".join).filter(bool)


@given(
    targets=st.lists(NAMES, min_size=1, max_size=3),
    excluded=st.none() | st.lists(NAMES, min_size=1, max_size=2),
    saved=st.none() | st.lists(st.sampled_from(["lm_head", "mlp", "embed_tokens"]), min_size=1),
    layers=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2),
    pattern=st.none() | st.sampled_from(["layers", "blocks"]),
)
def test_lists_match_as_in_peft(
    targets: list[str],
    excluded: list[str] | None,
    saved: list[str] | None,
    layers: int | list[int] | None,
    pattern: str | None,
) -> None:
    options: dict[str, Any] = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "layers_to_transform": layers,
        "layers_pattern": pattern if layers is not None else None,
    }
    config = LoraConfig(**options, modules_to_save=saved)
    matcher = Matcher(options, saved)
    assert [path for path in PATHS if matcher.targets(path)] == [
        path for path in PATHS if check_target_module_exists(config, path)
    ]


@pytest.mark.parametrize("pattern", [r".*\.(q|v)_proj", "q_proj", r"model\.layers\.[01]\..*", ".*", r"(?i).*Q_PROJ"])
@pytest.mark.parametrize("excluded", [None, r".*\.1\..*"])
def test_regular_expressions_match_as_in_peft(pattern: str, excluded: str | None) -> None:
    config = LoraConfig(target_modules=pattern, exclude_modules=excluded)
    matcher = Matcher({"target_modules": pattern, "exclude_modules": excluded}, None)
    assert [path for path in PATHS if matcher.targets(path)] == [
        path for path in PATHS if check_target_module_exists(config, path)
    ]


@given(
    patterns=st.dictionaries(
        st.sampled_from(["q_proj", r".*\.q_proj", "self_attn.q_proj", r"^model.layers.0.*", "proj"]), st.integers(1, 9)
    ),
    path=st.sampled_from(PATHS),
)
def test_rank_patterns_match_as_in_peft(patterns: dict[str, int], path: str) -> None:
    assert pattern_value(patterns, path, 0) == patterns.get(get_pattern_key(list(patterns), path), 0)


def test_absurd_patterns_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="not a regular expression"):
        compile_pattern("peft.target_modules", "[")
    with pytest.raises(InvalidValueError, match="at most 4096 characters"):
        compile_pattern("peft.target_modules", "a" * 5000)


def test_the_first_of_many_patterns_is_found() -> None:
    """Looked up at once, they are matched as PEFT does it: one by one, at the end of the path, behind a dot."""
    paths = [f"model.layers.{index}.{name}" for index in range(12) for name in ("self_attn.q_proj", "mlp.down_proj")]
    patterns: dict[str, int] = {
        "q.proj": 1,
        r"layers\.1.*": 2,
        "layers.1.self_attn.q_proj": 3,
        "down_proj": 4,
        "proj": 5,
    }
    patterns |= {f"layers.{index}.mlp.down_proj": 10 + index for index in range(12)} | {r".*\.3\..*": 6}
    for count in range(len(patterns) + 1):
        chosen = dict(list(patterns.items())[::-1][:count])
        for path in paths:
            one_by_one = next((v for p, v in chosen.items() if re.match(rf"(.*\.)?({p})$", path)), 0)
            assert pattern_value(chosen, path, 0) == one_by_one, (path, chosen)


def test_thousands_of_patterns_take_no_longer_than_a_few() -> None:
    patterns = {f"nothing.{index}.x_proj": 4 for index in range(5_000)} | {"q_proj": 16}
    started = time.process_time()
    for index in range(500):
        assert pattern_value(patterns, f"model.layers.{index}.self_attn.q_proj", 8) == 16
    assert time.process_time() - started < 2
