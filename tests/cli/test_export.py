"""`memplan export`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from memplan import interop

EXAMPLES = Path(__file__).parents[1] / "interop" / "examples"
MODEL = ("--model", "meta-llama/Llama-3.2-1B")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLES / "axolotl_qlora_1b.yaml", tmp_path / "run.yaml"))


def test_a_new_config(run: Callable[..., Any]) -> None:
    done = run("export", *MODEL, "--method", "lora", "--to", "axolotl")
    assert done.code == 0
    assert done.err == ""
    assert yaml.safe_load(done.out)["adapter"] == "lora"
    assert interop.read_text(done.out, name="a.yaml").recipe.method is None


def test_a_change_shows_its_diff_and_touches_nothing(run: Callable[..., Any], config: Path) -> None:
    before = config.read_text()
    done = run("export", str(config), "--micro-batch-size", "1", "--into", str(config))
    assert done.code == 0
    changed = [line for line in done.out.splitlines() if line[:1] in "+-"]
    assert changed == [f"--- {config}", f"+++ {config}", "-micro_batch_size: 2", "+micro_batch_size: 1"]
    assert config.read_text() == before


def test_a_change_is_written_where_it_is_wanted(run: Callable[..., Any], config: Path) -> None:
    before = config.read_text()
    run("export", str(config), "--micro-batch-size", "1", "--into", str(config), "--out", str(config))
    assert config.read_text() == before.replace("micro_batch_size: 2", "micro_batch_size: 1")


def test_without_a_recipe_file_the_options_change_the_config(run: Callable[..., Any], config: Path) -> None:
    nothing = run("export", "--into", str(config))
    assert (nothing.code, nothing.out) == (0, "")
    done = run("export", "--into", str(config), "--micro-batch-size", "1")
    changed = [line for line in done.out.splitlines() if line[:1] in "+-"][2:]
    assert (done.code, changed) == (0, ["-micro_batch_size: 2", "+micro_batch_size: 1"])
    missing = run("export", "--into", "nothing.yaml")
    assert (missing.code, "no such file" in missing.err) == (2, True)


def test_a_length_that_is_open_stays_open(run: Callable[..., Any]) -> None:
    path = str(EXAMPLES / "torchtune_full_8b.yaml")
    for arguments in (("--into", path), (path, "--into", path)):
        done = run("export", *arguments)
        assert (done.code, done.out) == (0, "")
        assert "sequence_length is left open" in done.err
    assert "max_seq_len: 1024" in run("export", "--into", path, "--sequence-length", "1024").out


def test_what_the_framework_decides_is_a_note_on_stderr(run: Callable[..., Any]) -> None:
    done = run("export", *MODEL, "--method", "lora", "--to", "trl")
    assert "note: loss is chunked in trl, not default" in done.err
    assert "note" not in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "what to write is not named"),
        (("--to", "axolot"), 2, "did you mean axolotl"),
        (("--to", "slurm"), 2, "needs to know the GPU"),
        (("--to", "slurm", "--into", "x.yaml"), 2, "--into is for training configs"),
        (("--method", "ia3", "--to", "trl"), 3, "TRL has no config for ia3"),
        (("--to", "trl", "--into", "nothing.yaml"), 2, "no such file"),
        (("--to", "trl", "--out", "/no/such/directory/x.yaml"), 4, "cannot be written"),
    ],
)
def test_what_goes_wrong(run: Callable[..., Any], arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run("export", *MODEL, *arguments)
    assert done.code == code
    assert message in done.err
    assert done.out == ""


@pytest.mark.parametrize("to", ["slurm", "k8s"])
def test_resources(run: Callable[..., Any], to: str) -> None:
    done = run("export", *MODEL, "--method", "lora", "--gpu", "rtx-4090", "--to", to)
    assert done.code == 0
    assert "RTX 4090" in done.out
