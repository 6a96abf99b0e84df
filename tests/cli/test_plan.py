"""`memplan plan`: forms of the answer, exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.planner import Plan
from tests.cli.conftest import Run

LLAMA = ("plan", "--model", "meta-llama/Llama-3.2-1B", "--sequence-length", "1024", "--max-changes", "2")
TOO_LARGE = (*LLAMA, "--micro-batch-size", "16", "--gpu", "rtx-4090")


def test_verdict_and_smallest_change_come_first(run: Run) -> None:
    outcome = run(*TOO_LARGE)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Does not fit on RTX 4090")
    assert lines[2] == "Least painful"
    assert "micro_batch_size = " in outcome.out
    assert "Single changes" in outcome.out
    assert "Memory against compute" in outcome.out
    assert "same result" in outcome.out
    assert outcome.err == ""


def test_json_is_the_plan(run: Run) -> None:
    outcome = run(*TOO_LARGE, "--json", "--largest", "batch,sequence", "--prices", "h100=2.5")
    found = Plan.model_validate_json(outcome.out)
    assert found.smallest is not None
    assert found.gpu == "rtx-4090"
    assert [one.quantity for one in found.largest] == ["batch", "sequence"]
    assert found.gpus[0].price == 2.5
    document = json.loads(outcome.out)
    assert document["schema_version"] == 1
    assert document["smallest"]["verdict"]["fits"] == "fits"


def test_markdown(run: Run) -> None:
    outcome = run(*TOO_LARGE, "--markdown")
    assert outcome.out.startswith("**Does not fit**")
    assert "| costs | change |" in outcome.out


def test_what_fits_needs_nothing(run: Run) -> None:
    outcome = run(*LLAMA, "--gpu", "h100")
    assert outcome.code == 0
    assert outcome.out.startswith("Fits on H100")
    assert "nothing has to change" in outcome.out


def test_nothing_fits(run: Run) -> None:
    outcome = run("plan", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "t4", "--max-changes", "1")
    assert outcome.code == 1
    assert "Nothing that was searched fits" in outcome.out


def test_uncertain_fails_where_asked(run: Run) -> None:
    line = (*LLAMA, "--micro-batch-size", "1", "--budget", "13GiB", "--allow", "micro_batch_size")
    plain = run(*line, "--json")
    assert json.loads(plain.out)["current"]["verdict"]["fits"] == "uncertain"
    assert plain.code == 1
    assert run(*line, "--fail-on", "uncertain").code == 3


def test_keys_are_kept_as_options_are_spelled(run: Run) -> None:
    outcome = run(*TOO_LARGE, "--json", "--keep", "micro-batch-size,--sequence-length", "--keep", "optim")
    found = Plan.model_validate_json(outcome.out)
    assert not {"batch", "sequence", "optimizer"} & set(found.space.changes)


def test_tier_and_budget(run: Run) -> None:
    outcome = run(*LLAMA, "--micro-batch-size", "16", "--budget", "20 GiB", "--tier", "1", "--json")
    found = Plan.model_validate_json(outcome.out)
    assert found.gpu is None
    assert found.usable_bytes == 20 * 2**30
    assert all(one.tier == 1 for one in found.singles)


def test_lengths(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("length,count\n100,10\n60000,1\n")
    line = ("plan", "--model", "meta-llama/Llama-3.2-1B", "--micro-batch-size", "2", "--gpu", "rtx-4090")
    outcome = run(*line, "--max-changes", "1", "--lengths", str(file))
    assert "The longest sample" in outcome.out
    assert "1 sample beyond it" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "a plan needs a limit"),
        (("--budget", "24"), "24 GiB"),
        (("--gpu", "rtx-4091"), "did you mean rtx-4090"),
        (("--gpu", "t4", "--keep", "batch_size"), "micro_batch_size"),
        (("--gpu", "t4", "--largest", "batches"), "did you mean batch"),
        (("--gpu", "t4", "--prices", "prices.toml"), "no such file"),
        (("--gpu", "t4", "--prices", "t4=free"), "above 0"),
        (("--gpu", "t4", "--lengths", "lengths.txt"), "no such file"),
        (("--gpu", "t4", "--max-changes", "many"), "whole number"),
        (("--gpu", "t4", "--max-changes", "9"), "1 to 4"),
        (("--gpu", "t4", "--tier", "7"), "hardware"),
        (("--gpu", "t4", "--json", "--markdown"), "exclude"),
        (("--gpu", "t4", "--fail-on", "doubt"), "uncertain"),
    ],
)
def test_what_is_wrong_is_said_on_stderr(run: Run, arguments: tuple[str, ...], text: str) -> None:
    outcome = run("plan", "--model", "meta-llama/Llama-3.2-1B", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert text in outcome.err
