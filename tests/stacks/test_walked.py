"""The walk against traces of the real libraries: those on record, and where the library is installed those made now."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError

import pytest

from memplan.errors import UnavailableError
from memplan.prepare import prepare
from memplan.resolve import resolve
from memplan.training_step import walk
from memplan.unsupported import unsupported_parts
from tests.stacks.cases import LIBRARIES, TRACED, packages_of, recipe_of, recorded, traced, version_of

RUNS = [(library, name) for library, (_, runs) in LIBRARIES.items() for name in runs]


@pytest.mark.parametrize(("library", "name"), RUNS, ids=[f"{library}: {name}" for library, name in RUNS])
def test_walk_equals_recorded_trace(library: str, name: str) -> None:
    resolved = resolve(recipe_of(library, name))
    prepared = prepare(resolved)
    assert unsupported_parts(resolved, prepared).texts == ()
    phases = walk(resolved, prepared)[1].phases
    assert [[p.at.step, str(p.at.phase), p.peak_bytes, p.end_bytes] for p in phases] == recorded(library)[name]


@pytest.mark.parametrize("library", LIBRARIES)
def test_recorded_traces_are_those_of_the_installed_library(library: str) -> None:
    path = TRACED[library]
    assert path is not None
    named = re.fullmatch(rf"{library}-([\d.]+)\.json", path.name)
    assert named is not None
    try:
        found = version_of(packages_of(library)[0])
    except PackageNotFoundError:
        pytest.skip(f"{library} is not installed: its traces are on record only")
    assert found.startswith(named.group(1))
    sample = list(LIBRARIES[library][1])[::24]
    known = recorded(library)
    try:
        now = traced(library, sample)
    except UnavailableError as error:  # PEFT and torchtune want different versions of torchao
        pytest.skip(str(error))
    assert now == {name: known[name] for name in sample}
