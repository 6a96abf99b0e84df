"""The options of the command line are those of the Recipe, and they are frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from memplan.cli.app import app
from memplan.cli.options import option_name, recipe_of, spelled_out
from memplan.errors import FileFormatError, InputError
from memplan.recipe import Recipe
from memplan.recipe_help import RECIPE_HELP

# A contract: scripts and CI files call these. Adding one is a decision; removing one breaks somebody.
RECIPE_OPTIONS = (
    "--format --model --task --num-labels --num-added-tokens --tie-word-embeddings --no-tie-word-embeddings "
    "--method --peft --lora-r --lora-dropout --target-modules --num-virtual-tokens --trainable "
    "--autocast-adapter-dtype --no-autocast-adapter-dtype "
    "--prepare-model-for-kbit-training --no-prepare-model-for-kbit-training "
    "--dtype --precision --autocast-dtype --load-in-4bit --no-load-in-4bit --load-in-8bit --no-load-in-8bit "
    "--bnb-4bit-quant-type --bnb-4bit-use-double-quant --no-bnb-4bit-use-double-quant --bnb-4bit-compute-dtype "
    "--bnb-4bit-quant-storage --llm-int8-skip-modules --quantization-config "
    "--micro-batch-size --sequence-length --target-length --gradient-accumulation-steps "
    "--padding --no-padding --packing --no-packing --packed-text-tokens "
    "--optim --optim-args --optim-target-modules --optimizer-in-backward --no-optimizer-in-backward --max-grad-norm "
    "--activation-checkpointing --activation-offloading "
    "--attn-implementation --loss --stack --stack-version --torch-version --keep-outputs --use-cache --no-use-cache "
    "--eval-strategy --per-device-eval-batch-size --prediction-loss-only --no-prediction-loss-only "
    "--eval-accumulation-steps --max-eval-samples --max-new-tokens --max-prompt-length --save-strategy "
    "--merge-and-unload --no-merge-and-unload "
    "--gpu --gpus --expandable-segments --no-expandable-segments --empty-cache-steps"
)
OWN_OPTIONS = {
    "estimate": ["--json", "--markdown", "--defaults", "--fail-on"],
    "plan": [
        "--budget",
        "--keep",
        "--allow",
        "--max-changes",
        "--tier",
        "--largest",
        "--prices",
        "--lengths",
        "--json",
        "--markdown",
        "--fail-on",
    ],
    "trace": ["--json", "--markdown", "--defaults", "--fail-on", "--layers", "--events", "--memory-viz", "--timeout"],
    "measure": [
        "--json",
        "--markdown",
        "--defaults",
        "--fail-on",
        "--device",
        "--steps",
        "--capacity",
        "--history",
        "--timeout",
        "--suite",
        "--list",
        "--only",
        "--minutes",
        "--repeats",
        "--skip-recorded",
        "--out",
        "--bundle",
        "--unpack",
    ],
    "compare": ["--matrix", "--cells", "--jobs", "--write", "--json", "--markdown"],
    "explain": ["--classic", "--component", "--top", "--json", "--markdown"],
    "explain-oom": ["--json", "--markdown"],
    "export": ["--to", "--into", "--out"],
    "check": [
        "--base",
        "--format",
        "--json",
        "--on-uncertain",
        "--exit-zero",
        "--budget",
        "--gpu",
        "--max-increase",
        "--suggest",
        "--no-suggest",
        "--schema",
    ],
    "diff": ["--format", "--gpu", "--json", "--markdown"],
    "read": ["--format", "--framework-version", "--json"],
    "models": ["--json"],
    "gpus": ["--json"],
    "methods": ["--json"],
    "optimizers": ["--json"],
    "accuracy": ["--source", "--by", "--level", "--engine", "--format", "--json"],
    "calibrate": ["--minutes", "--json", "--forget"],
    "serve": [
        "--host",
        "--port",
        "--workers",
        "--rate-limit",
        "--metrics",
        "--root-path",
        "--trusted-proxies",
        "--log-requests",
    ],
}
WITH_RECIPE = ("estimate", "plan", "trace", "measure", "compare", "explain", "explain-oom", "export")
# Commands whose argument is another file: the recipe's is an option.
RECIPE_FILE_OPTION = {"explain-oom": ["--recipe"]}


def _options_of(name: str) -> list[str]:
    group = typer.main.get_command(app)
    return [text for param in group.commands[name].params for text in (*param.opts, *param.secondary_opts)]  # type: ignore[attr-defined]


def test_commands_are_frozen() -> None:
    assert list(typer.main.get_command(app).commands) == list(OWN_OPTIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(OWN_OPTIONS))
def test_options_are_frozen(name: str) -> None:
    recipe = RECIPE_OPTIONS.split() if name in WITH_RECIPE else ()
    expected = [*RECIPE_FILE_OPTION.get(name, ()), *recipe, *OWN_OPTIONS[name]]
    assert [text for text in _options_of(name) if text.startswith("--")] == expected


def test_every_recipe_key_has_its_line_of_help() -> None:
    explained = [key for keys in RECIPE_HELP.values() for key in keys]
    assert sorted(explained) == sorted(Recipe.model_fields)


def test_help_is_short() -> None:
    lines = [text for keys in RECIPE_HELP.values() for text in keys.values()]
    assert [text for text in lines if len(text) > 88 or not text.endswith(".")] == []


def test_option_name() -> None:
    assert option_name("bnb_4bit_use_double_quant") == "--bnb-4bit-use-double-quant"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--activation-checkpointing"], ["--activation-checkpointing=true"]),
        (["--activation-checkpointing", "--json"], ["--activation-checkpointing=true", "--json"]),
        (["--activation-checkpointing", "reentrant"], ["--activation-checkpointing=reentrant"]),
        (["--activation-checkpointing=reentrant"], ["--activation-checkpointing=reentrant"]),
        (["--no-activation-checkpointing", "x"], ["--activation-checkpointing=false", "x"]),
        (["--gradient-checkpointing"], ["--activation-checkpointing=true"]),
        (["--no-gradient-checkpointing"], ["--activation-checkpointing=false"]),
        (["--activation-checkpointing", "run.yaml"], ["--activation-checkpointing=true", "run.yaml"]),
        (["--activation-checkpointing", "no", "run.yaml"], ["--activation-checkpointing=no", "run.yaml"]),
        (["--padding", "--no-packing"], ["--padding", "--no-packing"]),
        (["--", "--activation-checkpointing"], ["--", "--activation-checkpointing"]),
        ([], []),
    ],
)
def test_a_flag_with_kinds_is_spelled_out(given: list[str], expected: list[str]) -> None:
    assert spelled_out(given) == expected


def test_options_replace_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: mistral-7b-v0.1\nmethod: lora\nlora_r: 8\ngradient_checkpointing: true\n")
    recipe = recipe_of(file, {"lora_r": "16", "activation_checkpointing": "false", "gpu": None, "trainable": []})
    assert recipe.said() == {
        "model": "mistral-7b-v0.1",
        "method": "lora",
        "lora_r": 16,
        "activation_checkpointing": False,
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"recipe": {"model": "gpt2", "gpus": 2}}'),
        ("run.toml", 'model = "gpt2"\ngpus = 2\n'),
        ("run.yml", "model: gpt2\ngpus: 2\n"),
    ],
)
def test_every_file_format_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert recipe_of(tmp_path / name, {}) == Recipe(model="gpt2", gpus=2)


def test_a_model_may_be_an_object() -> None:
    recipe = recipe_of(None, {"model": '{"model_type": "llama"}'})
    assert recipe.model == {"model_type": "llama"}


def test_no_model_is_an_error() -> None:
    with pytest.raises(InputError, match="no model is named"):
        recipe_of(None, {"gpu": "t4"})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        recipe_of(tmp_path / "run.yaml", {})
