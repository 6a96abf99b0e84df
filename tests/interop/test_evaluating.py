"""Evaluation and saving between steps: what a config asks for, what is never taken for nothing, and the way back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import memplan
from memplan import interop
from memplan.errors import FileFormatError, UnsupportedError
from memplan.estimate import Fits
from memplan.interop.reading import Reading
from memplan.interop.writing import write, write_text
from memplan.recipe import Recipe

ROWS = "per_device_eval_batch_size"
TRAINER = "adam_epsilon: 1\nper_device_train_batch_size: 2\n"
AXOLOTL = "base_model: gpt2\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n"
LLAMAFACTORY = "model_name_or_path: gpt2\nfinetuning_type: full\nbf16: true\nper_device_train_batch_size: 2\n"
TRL = "model_name_or_path: gpt2\nmax_length: 128\n"
KEYS = ("eval_strategy", ROWS, "prediction_loss_only", "eval_accumulation_steps", "max_eval_samples", "save_strategy")
MODEL = "Qwen/Qwen2.5-0.5B"


def yaml(text: str) -> Reading:
    return interop.read_text(text, name="run.yaml")


def moments(reading: Reading) -> dict[str, Any]:
    return {key: reading.keys[key] for key in KEYS if key in reading.keys}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRAINER, {}),
        (f"{TRAINER}eval_strategy: no\n{ROWS}: 64\neval_accumulation_steps: 2\n", {}),
        (f"{TRAINER}eval_strategy: 'no'\n{ROWS}: 64\n", {}),
        (f"{TRAINER}eval_strategy: steps\n", {"eval_strategy": "steps", ROWS: 8}),
        (f"{TRAINER}evaluation_strategy: epoch\n{ROWS}: 1\n", {"eval_strategy": "epoch", ROWS: 1}),
        (f"{TRAINER}eval_strategy: 'no'\nevaluation_strategy: epoch\n", {}),
        (f"{TRAINER}do_eval: true\n", {"eval_strategy": "epoch", ROWS: 8}),
        (f"{TRAINER}do_eval: false\n", {}),
        (
            f"{TRAINER}eval_strategy: epoch\nprediction_loss_only: true\neval_accumulation_steps: 3\nmax_eval_samples: 50\n",
            {"eval_strategy": "epoch", ROWS: 8, "prediction_loss_only": True, "eval_accumulation_steps": 3,
             "max_eval_samples": 50},
        ),
        (f"{TRAINER}eval_strategy: epoch\nprediction_loss_only: false\n", {"eval_strategy": "epoch", ROWS: 8}),
        (f"{TRAINER}save_strategy: epoch\n", {"save_strategy": "epoch"}),
        (f"{TRAINER}save_strategy: best\n", {"save_strategy": "epoch"}),
        (f"{TRAINER}save_strategy: no\n", {}),
        (f"{TRAINER}save_steps: 500\n", {}),
        (f"{TRL}eval_strategy: steps\n{ROWS}: 3\n", {"eval_strategy": "steps", ROWS: 3}),
        (f"{TRL}do_eval: true\n", {}),
        (f"{LLAMAFACTORY}val_size: 0.1\n", {}),
        (f"{LLAMAFACTORY}val_size: 0.1\neval_strategy: steps\n{ROWS}: 1\n", {"eval_strategy": "steps", ROWS: 1}),
        (f"{LLAMAFACTORY}val_size: 0.1\ndo_eval: true\n", {"eval_strategy": "epoch", ROWS: 8}),
        (f"{AXOLOTL}eval_batch_size: 4\n", {}),
        (f"{AXOLOTL}val_set_size: 0.1\n", {}),
        (f"{AXOLOTL}val_set_size: 0\nevals_per_epoch: 2\n", {}),
        (
            f"{AXOLOTL}val_set_size: 0.1\nevals_per_epoch: 2\n",
            {"eval_strategy": "steps", ROWS: 2, "eval_accumulation_steps": 4},
        ),
        (
            f"{AXOLOTL}test_datasets:\n  - path: some\neval_steps: 0.5\neval_batch_size: 4\n",
            {"eval_strategy": "steps", ROWS: 4, "eval_accumulation_steps": 4},
        ),
        (
            f"{AXOLOTL}val_set_size: 10\neval_strategy: epoch\n",
            {"eval_strategy": "epoch", ROWS: 2, "eval_accumulation_steps": 4},
        ),
        (f"{AXOLOTL}eval_strategy: 'no'\nval_set_size: 0.1\n", {}),
    ],
)  # fmt: skip
def test_what_happens_between_steps(text: str, expected: dict[str, Any]) -> None:
    reading = yaml(text)
    assert moments(reading) == expected
    assert not reading.unknown_memory_like
    if not text.startswith(AXOLOTL):  # which evaluates before the first step as well
        assert not [entry for entry in reading.unsupported if "evaluat" in entry]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        *(
            (f"{head}{key}: {value}\neval_strategy: steps\n", key)
            for head in (TRAINER, TRL, LLAMAFACTORY)
            for key, value in (
                ("predict_with_generate", "true"),
                ("batch_eval_metrics", "true"),
                ("include_for_metrics", "[inputs]"),
                ("include_inputs_for_metrics", "true"),
                ("eval_do_concat_batches", "false"),
                ("metric_for_best_model", "accuracy"),
                ("eval_on_start", "true"),
            )
        ),
        (f"{TRAINER}eval_on_start: true\n", "eval_on_start"),
        (f"{TRAINER}do_predict: true\n", "do_predict"),
        (f"{LLAMAFACTORY}do_predict: true\n", "do_predict"),
        (f"{LLAMAFACTORY}compute_accuracy: true\neval_strategy: steps\n", "compute_accuracy"),
        (f"{AXOLOTL}val_set_size: 0.1\neval_steps: 5\n", "eval_steps"),
        (f"{AXOLOTL}val_set_size: 0.1\nevals_per_epoch: 5\ndo_bench_eval: true\n", "do_bench_eval"),
        (f"{AXOLOTL}val_set_size: 0.1\nevals_per_epoch: 5\neval_table_size: 3\n", "eval_table_size"),
        (f"{AXOLOTL}val_set_size: 0.1\nevals_per_epoch: 5\neval_sample_packing: true\n", "eval_sample_packing"),
    ],
)
def test_what_is_not_walked_is_never_taken_for_nothing(text: str, key: str) -> None:
    line = next(number for number, entry in enumerate(text.splitlines(), 1) if entry.startswith(f"{key}:"))
    assert any(entry.startswith(f"run.yaml:{line}: ") for entry in yaml(text).unsupported)


@pytest.mark.parametrize("key", ["bf16_full_eval", "fp16_full_eval", "eval_use_gather_object"])
def test_what_casts_outside_of_training_alone_changes_nothing(key: str) -> None:
    text = f"{TRAINER}eval_strategy: steps\n"
    reading = yaml(f"{text}{key}: true\n")
    assert reading.keys == yaml(text).keys
    assert reading.unsupported == () == reading.unknown_memory_like


def test_losses_alone_need_no_metric() -> None:
    text = f"{TRAINER}eval_strategy: steps\nmetric_for_best_model: accuracy\n"
    assert yaml(text).unsupported
    assert not yaml(f"{text}prediction_loss_only: true\n").unsupported
    assert not yaml(text.replace("accuracy", "eval_loss")).unsupported


@pytest.mark.parametrize(("key", "value"), [("eval_strategy", "always"), ("save_strategy", "true")])
def test_another_word_is_refused(key: str, value: str) -> None:
    with pytest.raises(FileFormatError, match=rf"run.yaml:3: {key} = .* is not allowed: no, steps, epoch"):
        yaml(f"{TRAINER}{key}: {value}\n")


def test_an_evaluation_that_is_the_peak_decides() -> None:
    text = f"{TRAINER}gradient_checkpointing: true\nbf16: true\neval_strategy: steps\n{ROWS}: 64\n"
    changes = {"model": MODEL, "sequence_length": 512, "gpu": "A100-80GB"}
    evaluated, silent = yaml(text).estimate(**changes), yaml(text).estimate(**changes, eval_strategy="no")
    assert evaluated.peak.phase == "evaluation"
    assert evaluated.peak.allocated_bytes > 2 * silent.peak.allocated_bytes
    assert evaluated.recipe["per_device_eval_batch_size"] == 64
    assert "per_device_eval_batch_size" not in silent.recipe


@pytest.mark.parametrize(
    "text",
    [
        f"{TRL}eval_strategy: steps\n".replace("gpt2", MODEL),
        f"{AXOLOTL}val_set_size: 0.1\nevals_per_epoch: 2\n".replace("gpt2", MODEL),
    ],
)
def test_an_evaluation_that_is_not_walked_never_fits(text: str) -> None:
    estimate = yaml(text).estimate(gpu="H200", sequence_length=64)
    assert estimate.verdict().fits is Fits.UNCERTAIN
    assert any("evaluation" in entry for entry in estimate.unsupported)


def test_objects_say_how_to_evaluate_and_not_that_they_save() -> None:
    args = SimpleNamespace(
        per_device_train_batch_size=2, per_device_eval_batch_size=32, eval_strategy="epoch", save_strategy="steps",
        prediction_loss_only=False, eval_accumulation_steps=None, do_eval=True, include_for_metrics=[],
        batch_eval_metrics=False, eval_do_concat_batches=True, metric_for_best_model=None,
    )  # fmt: skip
    recipe = memplan.Recipe.from_objects(model_config=MODEL, training_args=args)
    assert (recipe.eval_strategy, recipe.per_device_eval_batch_size) == ("epoch", 32)
    assert recipe.save_strategy is None is recipe.prediction_loss_only
    assert not recipe.uncovered or not any("evaluat" in text for text in recipe.uncovered)


def test_transformers_own_arguments(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, eval_strategy="steps", eval_steps=5, use_cpu=True, report_to=[]
    )
    reading = interop.read_objects(model_config=MODEL, training_args=args)
    assert moments(reading) == {"eval_strategy": "steps", ROWS: 8}
    assert not [entry for entry in reading.uncovered if "evaluat" in entry or "metric" in entry]


# -- writing ----------------------------------------------------------------------------------------------


def recipe(**keys: Any) -> Recipe:
    return Recipe(model=MODEL, sequence_length=128, dtype="bfloat16", precision="pure", micro_batch_size=2, **keys)


@pytest.mark.parametrize("to", ["trl", "axolotl", "llamafactory"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"eval_strategy": "no"},
        {"eval_strategy": "steps"},
        {"eval_strategy": "epoch", ROWS: 3},
        {"save_strategy": "epoch"},
        {"eval_strategy": "epoch", ROWS: 2, "prediction_loss_only": True, "save_strategy": "steps"},
    ],
)
def test_a_new_file_says_what_happens_between_steps(to: str, keys: dict[str, Any]) -> None:
    written = write(recipe(**keys), to)
    assert written.reading is not None
    wanted = {"eval_strategy": "no", **keys}
    if wanted["eval_strategy"] != "no":
        wanted = {ROWS: 8, **wanted}
    found = moments(written.reading)
    for key in ("eval_strategy", ROWS, "save_strategy"):
        assert found.get(key, "no" if key == "eval_strategy" else None) == wanted.get(key), key
    assert f"eval_strategy: {wanted['eval_strategy']}" in written.text.replace('"', "").replace("'", "")


def test_what_a_config_cannot_say_is_refused_or_told() -> None:
    kept = recipe(eval_strategy="steps", prediction_loss_only=False, max_eval_samples=20)
    for to in ("trl", "axolotl", "llamafactory", "torchtune"):
        with pytest.raises(UnsupportedError, match=r"cannot say (prediction_loss_only|eval_strategy|per_device_eval)"):
            write(kept, to)
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        write(recipe(method="lora", merge_and_unload=True), "trl")
    told = write(recipe(eval_strategy="steps", max_eval_samples=20), "llamafactory").implied
    assert "max_eval_samples = 20 is not written: what llamafactory evaluates is its data's to say" in told
    told = write(recipe(eval_strategy="steps", eval_accumulation_steps=5), "axolotl").implied
    assert "eval_accumulation_steps is 1 in axolotl, not 5" in told
    assert "eval_accumulation_steps: 5" in write(recipe(eval_strategy="steps", eval_accumulation_steps=5), "trl").text


TEMPLATES = {
    "trl": f"model_name_or_path: {MODEL}\nmax_length: 128\neval_strategy: steps  # often\n{ROWS}: 4\nsave_strategy: epoch\n",
    "llamafactory": f"model_name_or_path: {MODEL}\nfinetuning_type: full\npure_bf16: true\neval_strategy: steps  # often\n"
    f"{ROWS}: 4\nsave_strategy: epoch\n",
    "axolotl": f"base_model: {MODEL}\nval_set_size: 0.1\neval_strategy: steps  # often\n"
    "eval_batch_size: 4\nsave_strategy: epoch\n",
}


@pytest.mark.parametrize("to", TEMPLATES)
@pytest.mark.parametrize(
    ("changes", "removed"),
    [
        ({}, set()),
        ({"eval_strategy": "no"}, {"eval_strategy"}),
        ({"eval_strategy": "epoch"}, {"eval_strategy"}),
        ({ROWS: 1}, {ROWS, "eval_batch_size"}),
        ({"save_strategy": "no"}, {"save_strategy"}),
        ({"micro_batch_size": 1}, set()),
    ],
)
def test_a_template_changes_where_the_recipe_does(
    tmp_path: Path, to: str, changes: dict[str, Any], removed: set[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEMPLATES[to])
    written = write(changes, to, path)
    gone = {line[1:].partition(":")[0] for line in written.diff.splitlines() if line[:1] == "-" and line[:3] != "---"}
    assert gone <= removed
    assert bool(gone) == bool(removed)
    assert "# often" in written.text
    assert written.reading is not None
    whole = interop.read(path).recipe_with(**changes)
    back = written.reading.recipe
    assert (back.eval_strategy or "no", back.per_device_eval_batch_size, back.save_strategy or "no") == (
        whole.eval_strategy or "no", whole.per_device_eval_batch_size, whole.save_strategy or "no",
    )  # fmt: skip


def test_a_batch_that_follows_another_is_written_only_where_it_no_longer_does() -> None:
    text = f"base_model: {MODEL}\nval_set_size: 0.1\nevals_per_epoch: 2\nmicro_batch_size: 4\n"
    old = interop.read_text(text, name="run.yaml")
    assert old.recipe_with(micro_batch_size=1).per_device_eval_batch_size == 1
    assert "eval_batch_size" not in write_text(old.recipe_with(micro_batch_size=1), "axolotl", text, "run.yaml").text
    apart = old.recipe_with(micro_batch_size=1, per_device_eval_batch_size=4)
    assert "\neval_batch_size: 4\n" in write_text(apart, "axolotl", text, "run.yaml").text


def test_evaluation_by_another_key_is_not_switched_off_in_silence() -> None:
    text = f"base_model: {MODEL}\nval_set_size: 0.1\nevals_per_epoch: 2\n"
    off = interop.read_text(text, name="run.yaml").recipe_with(eval_strategy="no")
    with pytest.raises(UnsupportedError, match="cannot say eval_strategy"):
        write_text(off, "axolotl", text, "run.yaml")
