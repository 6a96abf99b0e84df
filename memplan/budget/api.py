"""The entry points: a budget file, files without one, content that somebody sent, and two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memplan.budget.checking import Options, run_checks
from memplan.budget.config import CheckSpec, OnUncertain, specs_of
from memplan.budget.difference import difference
from memplan.budget.files import Files, FolderFiles, TextFiles, no_such_file
from memplan.budget.find import find_config, parse_config_text, table_of
from memplan.budget.git import GitFiles, base_of
from memplan.budget.growth import Past
from memplan.budget.quantity import parse_amount, parse_increase, parse_size
from memplan.budget.recipes import Accept, Run, run_of
from memplan.budget.result import BaseRef, CheckReport, Difference
from memplan.documents import Document, read_document
from memplan.errors import MemplanError, UnavailableError, UnknownNameError
from memplan.recipe import Recipe
from memplan.units import MIB

OnUncertainName = OnUncertain | str


def check(
    path: str | Path | None = None,
    *,
    base: str | None = None,
    on_uncertain: OnUncertainName | None = None,
    suggest: bool = True,
) -> CheckReport:
    """Judge every check of a budget file.

    Args:
        path: a memplan.toml, or a pyproject.toml with `[tool.memplan]`; by default the nearest above the working folder.
        base: a git ref to compare with, or `auto` (see `memplan.budget.git.base_of`); None for none.
        on_uncertain: `fail`, `warn` or `pass` instead of what the file says.
        suggest: whether to search the least painful change for what is over.

    Raises:
        InputError: the file is wrong, or there is none.
        UnavailableError: `path` or the base is not there. A file that a check names and that is missing is reported by that
            check alone, as is everything else that concerns one check.
    """
    file = Path(path) if path is not None else find_config(Path.cwd())
    if not file.is_file():
        raise no_such_file(str(path))
    # Named as the user named it, or by its place below the working folder: that is what a CI service links.
    name = str(path) if path is not None else _below(file, Path.cwd())
    document, at = table_of(replace(read_document(file), name=name))
    specs = specs_of(document, at)
    past = _past(file, base) if base is not None else Past()
    options = Options(on_uncertain=_on_uncertain(on_uncertain), suggest=suggest)
    return run_checks(specs, FolderFiles(file.resolve().parent), past, name, options)


def check_files(
    paths: Sequence[str | Path],
    *,
    budget: str | None = None,
    gpu: str | None = None,
    headroom: str | None = None,
    max_increase: str | None = None,
    base: str | None = None,
    on_uncertain: OnUncertainName | None = None,
    suggest: bool = True,
) -> CheckReport:
    """Judge recipes or training configs without a budget file, each by the same limits; paths are below the working folder.

    Without a budget and a GPU the report has the peaks, and nothing is judged.

    Raises:
        InputError: a limit that cannot be read.
        UnavailableError: the base is not there.
    """
    specs = [
        _file_spec(str(path), budget=budget, gpu=gpu, headroom=headroom, max_increase=max_increase) for path in paths
    ]
    past, folder = Past(), Path.cwd()
    if base is not None:
        found = base_of(base, folder)
        if found is None:
            past = Past(note="there is no branch to compare with")
        else:
            files, ref = GitFiles(folder, found), BaseRef(ref=found.ref, commit=found.commit)
            there = {spec.name: spec for spec in specs if files.has(spec.name)}
            past = Past(ref, there, files, note=f"the file is not in {found.ref}")
    options = Options(on_uncertain=_on_uncertain(on_uncertain), suggest=suggest, limits_needed=False)
    report = run_checks(specs, FolderFiles(folder), past, "command line", options)
    if any(one.limits or one.growth.limit_bytes is not None or one.problem is not None for one in report.checks):
        return report
    note = 'no limit is given: --budget "72 GiB" or --gpu rtx-4090 makes this a check, a memplan.toml keeps it'
    return report.model_copy(update={"notes": (*report.notes, note)})


@dataclass(frozen=True)
class Content:
    """A budget file and the files it names, as somebody sent them.

    Attributes:
        data: what the budget file holds, parsed.
        files: texts of recipe and config files by their paths.
    """

    data: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)


def check_mapping(
    data: Mapping[str, Any],
    *,
    files: Mapping[str, str] | None = None,
    base: Content | None = None,
    accept: Accept | None = None,
    on_uncertain: OnUncertainName | None = None,
    suggest: bool = False,
    most_explained: int | None = None,
) -> CheckReport:
    """Judge a budget file that was parsed elsewhere. Neither the file system nor git is looked at.

    Args:
        data: with `schema`, `check` and perhaps `defaults`.
        files: texts of the files that checks name, by path; a model's config.json too.
        base: the same of the state to compare with; None for none.
        accept: called with every recipe before it is computed; raises a `MemplanError` where it may not be.
        on_uncertain: as for `check`.
        suggest: as for `check`.
        most_explained: estimates that may be made to say what each changed key does; None for any number.

    Raises:
        InputError: `data` is wrong.
    """
    specs = specs_of(Document("checks", "json", dict(data)))
    past = Past(note="no base is given")
    if base is not None:
        old = {spec.name: spec for spec in specs_of(Document("base", "json", dict(base.data)))}
        past = Past(BaseRef(ref="base", commit=""), old, TextFiles(base.files), note="")
    options = Options(
        on_uncertain=_on_uncertain(on_uncertain), suggest=suggest, accept=accept, most_explained=most_explained
    )
    return run_checks(specs, TextFiles(files or {}), past, "checks", options)


def diff(
    before: str | Path | Recipe | Mapping[str, Any],
    after: str | Path | Recipe | Mapping[str, Any],
    *,
    format: str | None = None,  # noqa: A002
    gpu: str | None = None,
) -> Difference:
    """Why two runs need different memory, component by component and key by key.

    Args:
        before: a recipe, its keys, the path of a recipe or training config, or `REF:path` of one at a git ref.
        after: the same.
        format: of the files; by default it is detected.
        gpu: the card whose kernels run, where the recipes name none.

    Raises:
        InputError: a file or a recipe is wrong.
        UnavailableError: a file or a ref is not there.
        UnsupportedError: a run of which not even the model states are known.
    """
    sides = [_side(one, format, gpu) for one in (before, after)]
    labels = [label for label, _ in sides]
    if labels[0] == labels[1]:
        labels = ["before", "after"]
    return difference(sides[0][1], sides[1][1], labels=(labels[0], labels[1]))


def _side(given: str | Path | Recipe | Mapping[str, Any], file_format: str | None, gpu: str | None) -> tuple[str, Run]:
    common: dict[str, Any] = {"gpu": gpu, "is_default_gpu": True}
    folder = Path.cwd()
    if isinstance(given, Recipe):
        spec = CheckSpec(name="recipe", recipe=given.said(), **common)
        run = run_of(spec, FolderFiles(folder))
        return "recipe", Run(run.recipe.with_uncovered(given.uncovered), run.model)
    if isinstance(given, Mapping):
        return "recipe", run_of(CheckSpec(name="recipe", recipe=given, **common), FolderFiles(folder))
    text = str(given)
    ref, colon, path = text.partition(":")
    files: Files = FolderFiles(folder)
    if colon and not files.has(text) and len(ref) > 1:  # one letter before a colon is a drive
        found = base_of(ref, folder)
        if found is None:
            raise UnavailableError(f"{ref} names no branch to compare with", hint="name a branch, tag or commit")
        files = GitFiles(folder, found)
    else:
        path = text
    return text, run_of(CheckSpec(name=text, files=(path,), format=file_format, **common), files)


def _file_spec(
    path: str, *, budget: str | None, gpu: str | None, headroom: str | None, max_increase: str | None
) -> CheckSpec:
    return CheckSpec(
        name=path,
        files=(path,),
        gpu=gpu,
        budget=budget or "",
        budget_bytes=parse_size(budget, "budget", least_bytes=MIB) if budget is not None else None,
        headroom=parse_amount(headroom, "headroom") if headroom not in (None, "auto") else None,
        max_increase=parse_increase(max_increase, "max_increase") if max_increase is not None else None,
    )


def _past(file: Path, ref: str) -> Past:
    """The checks of the budget file as it was at a ref."""
    folder = file.resolve().parent
    found = base_of(ref, folder)
    if found is None:
        return Past(note="there is no branch to compare with")
    files, base = GitFiles(folder, found), BaseRef(ref=found.ref, commit=found.commit)
    if not files.has(file.name):
        return Past(base, {}, files, note=f"{file.name} is not in {found.ref}")
    try:
        document, at = table_of(parse_config_text(files.read(file.name), f"{file.name} at {found.ref}"))
        specs = specs_of(document, at)
    except MemplanError as error:
        return Past(base, {}, files, note=error.message, broken=True)
    return Past(base, {spec.name: spec for spec in specs}, files, note=f"the check is not in {found.ref}")


def _on_uncertain(name: OnUncertainName | None) -> OnUncertain | None:
    if name is None:
        return None
    if name not in list(OnUncertain):
        raise UnknownNameError("on_uncertain", str(name), list(OnUncertain))
    return OnUncertain(name)


def _below(file: Path, folder: Path) -> str:
    import os

    return Path(os.path.relpath(file, folder)).as_posix()


__all__ = ["Content", "check", "check_files", "check_mapping", "diff"]
