"""Errors: codes, exit codes, and what "did you mean" finds."""

from __future__ import annotations

import pytest

import memplan.errors as errors
from memplan.errors import (
    FileFormatError,
    InputError,
    InvalidValueError,
    MemplanError,
    UnavailableError,
    UnknownNameError,
    UnsupportedError,
    closest,
)
from memplan.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("bacth", "micro_batch_size"),
        ("batch_size", "micro_batch_size"),
        ("micro_batchsize", "micro_batch_size"),
        ("seq_length", "sequence_length"),
        ("sequnce", "sequence_length"),
        ("checkpoint", "activation_checkpointing"),
        ("optimizer", "optim"),
        ("GPU", "gpu"),
        ("Load-In-4bit", "load_in_4bit"),
        ("quant_typ", "bnb_4bit_quant_type"),
        ("lora_rank", "lora_r"),
    ],
)
def test_closest_recipe_key(name: str, best: str) -> None:
    assert closest(name, Recipe.model_fields)[0] == best


@pytest.mark.parametrize("name", ["", "zzz", "x", "-", "___"])
def test_nothing_is_close_to_noise(name: str) -> None:
    assert closest(name, ["micro_batch_size", "optim", "gpu"]) == []


def test_whole_names_come_before_words() -> None:
    assert closest("batch", ["batch", "micro_batch_size"]) == ["batch"]
    assert closest("rtx-4900", ["rtx-4090", "rtx-a4000"], limit=1) == ["rtx-4090"]


def test_names_that_contain_it_come_before_words_like_it() -> None:
    assert closest("norm", ["max_grad_norm", "normal"], limit=1) == ["normal"]
    assert closest("llama", ["meta-llama/Llama-3.2-1B", "huggyllama/llama-7b"]) == [
        "meta-llama/Llama-3.2-1B",
        "huggyllama/llama-7b",
    ]


def test_closest_keeps_the_spelling_of_the_set_and_the_limit() -> None:
    found = closest("BACTH", [f"Micro_Batch_Size_{letter}" for letter in "abcdef"])
    assert found == ["Micro_Batch_Size_a", "Micro_Batch_Size_b", "Micro_Batch_Size_c"]


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (MemplanError("a"), 2, "error"),
        (InputError("a"), 2, "invalid_input"),
        (UnknownNameError("GPU", "a", ["b"]), 2, "unknown_gpu"),
        (UnknownNameError("recipe key", "a", ["b"]), 2, "unknown_recipe_key"),
        (InvalidValueError("optim", 1, "a name"), 2, "invalid_value"),
        (FileFormatError("a"), 2, "invalid_file"),
        (UnsupportedError("a"), 3, "unsupported"),
        (UnavailableError("a"), 4, "unavailable"),
    ],
)
def test_exit_code_and_code(error: MemplanError, exit_code: int, code: str) -> None:
    assert (error.exit_code, error.code) == (exit_code, code)


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
    assert not issubclass(UnsupportedError, ValueError)


def test_unknown_name_says_what_was_meant_and_what_is_allowed() -> None:
    error = UnknownNameError("loss", "fused", ["default", "fused_linear"], hint="see the README")
    assert str(error) == (
        "unknown loss 'fused'\ndid you mean fused_linear?\nallowed: default, fused_linear\nsee the README"
    )
    assert error.suggestions == ["fused_linear"]


def test_a_long_set_is_not_listed() -> None:
    error = UnknownNameError("model", "zzz", [f"model-{number}" for number in range(41)])
    assert error.hint == ""


def test_a_long_value_is_cut() -> None:
    error = InvalidValueError("peft", "x" * 500, "an object")
    assert error.message == "peft = '" + "x" * 117 + "...' is not allowed: an object"


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    assert errors.__doc__ is not None
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MemplanError)]
    assert [cls.__name__ for cls in classes if cls.__name__ not in errors.__doc__] == []
