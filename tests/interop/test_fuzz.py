"""Whatever stands in a config, the answer is a reading or one clear error."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan import interop
from memplan.documents import parse
from memplan.errors import MemplanError
from memplan.interop.draft import Draft, Source
from memplan.interop.formats import FORMATS, get_format

EXAMPLES = Path(__file__).parent / "examples"
NAMES = [entry.name for entry in FORMATS if entry.name != "recipe"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["auto", "bf16", "fp16", "bfloat16", "float32", "lora", "qlora", "full", "none", "cpu", "true",
                        "a,b=1", "", "${dtype}"])
    | st.text(max_size=5)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


@cache
def known_keys(name: str) -> tuple[str, ...]:
    """The keys that a format's reader asks for on its examples, and those below them."""
    found: set[str] = set()
    for path in EXAMPLES.iterdir():
        data = parse(path.read_text(), "toml" if path.suffix == ".toml" else "yaml", path.name).data
        source = Source(path.name, data, {})
        if interop.detect_file(path) == name:
            get_format(name).read(source, Draft())
            sources = [source]
            while sources:
                one = sources.pop()
                found |= one.taken
                sources += one.children.values()
    return tuple(sorted(found))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_values_of_known_keys(name: str, data: st.DataObject) -> None:
    keys = st.sampled_from(known_keys(name))
    drawn: dict[str, Any] = data.draw(
        st.dictionaries(keys, VALUES | st.dictionaries(keys, VALUES, max_size=3), max_size=8)
    )
    text = json.dumps(drawn)
    try:
        reading = interop.read_text(text, name, "run.json")
        reading.recipe_with(model="gpt2")
    except MemplanError:
        return
    touched = {entry.key.split(".")[0] for entry in reading.used} | {key.split(".")[0] for key in reading.ignored}
    assert touched <= set(drawn)


@pytest.mark.parametrize("path", sorted(path.name for path in EXAMPLES.iterdir()))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_example_with_one_value_changed(path: str, data: st.DataObject) -> None:
    syntax: Any = "toml" if path.endswith(".toml") else "yaml"
    document = parse((EXAMPLES / path).read_text(), syntax, path).data
    mapping = document
    key = data.draw(st.sampled_from(sorted(mapping)))
    while isinstance(mapping[key], dict) and mapping[key] and data.draw(st.booleans()):
        mapping = mapping[key]
        key = data.draw(st.sampled_from(sorted(mapping)))
    mapping[key] = data.draw(VALUES)
    with suppress(MemplanError):
        interop.read_text(json.dumps(document), interop.detect_file(EXAMPLES / path), "run.json").recipe_with(
            model="gpt2"
        )


@pytest.mark.parametrize("name", [entry.name for entry in FORMATS])
def test_a_file_of_many_keys_costs_little(name: str) -> None:
    keys = {f"memory_{number}": 1 for number in range(12_000)}
    starts = {
        "peft": {"peft_type": "LORA"},
        "torchtune": {"model": {"_component_": "x"}, "dtype": "bf16", "batch_size": 1},
    }
    text = json.dumps({**starts.get(name, {}), **keys, "mem_" * 8_000: 1})
    began = time.process_time()
    interop.read_text(text, name, "run.json")
    assert time.process_time() - began < 3
