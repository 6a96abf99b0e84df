"""Names, options, `optim_args` and the default, against transformers' own lists."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from typing import Any

import pytest
import torch
from transformers import trainer_optimizer
from transformers.training_args import OptimizerNames, TrainingArguments

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnknownNameError, UnsupportedError
from memplan.optimizers import ParamInfo, default_optimizer, get_optimizer, optimizer_names, optimizer_rows
from memplan.optimizers.registry import _LAYOUTS

SUPPORTED = optimizer_names(supported_only=True)


def example(name: str) -> Any:
    """The optimizer with what it cannot do without."""
    needs_targets = name.startswith(("galore", "apollo"))
    return get_optimizer(name, optim_target_modules="all-linear") if needs_targets else get_optimizer(name)


def test_every_name_of_transformers_has_a_row() -> None:
    ours = {name for name, row in optimizer_rows().items() if row.origin == "transformers"}
    assert ours == {member.value for member in OptimizerNames}


def test_every_row_says_where_it_comes_from() -> None:
    for row in optimizer_rows().values():
        assert row.source
        assert row.date
        assert row.origin in {"transformers", "memplan"}
        assert bool(row.unsupported) != (row.layout in _LAYOUTS)
        assert bool(row.unsupported) != bool(row.library)


@pytest.mark.parametrize("name", SUPPORTED)
def test_classes_that_are_installed_exist(name: str) -> None:
    module, _, cls = optimizer_rows()[name].cls.rpartition(".")
    if module.split(".")[0] in {"torch", "transformers", "bitsandbytes"}:
        assert issubclass(getattr(import_module(module), cls), torch.optim.Optimizer)


@pytest.mark.parametrize("name", SUPPORTED)
def test_optim_args_are_the_keys_that_transformers_reads(name: str) -> None:
    row = optimizer_rows()[name]
    handler = trainer_optimizer._OPTIMIZER_HANDLERS.get(name)
    if handler is None:
        assert row.origin == "memplan"
        return
    tree = ast.parse(inspect.getsource(handler))
    reads_optim_args = any(isinstance(node, ast.Attribute) and node.attr == "optim_args" for node in ast.walk(tree))
    keys = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert set(row.optim_args) <= keys
    if row.optim_args:
        assert reads_optim_args


def test_the_default_is_transformers_default() -> None:
    field = TrainingArguments.__dataclass_fields__["optim"]
    assert default_optimizer(torch.__version__) == field.default


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.7.1", "adamw_torch"),
        ("2.8", "adamw_torch_fused"),
        ("2.8.0.dev20250601+cu128", "adamw_torch_fused"),
        ("2.13.0+cpu", "adamw_torch_fused"),
        ("1.13.1", "adamw_torch"),
        ("10.0", "adamw_torch_fused"),
    ],
)
def test_default_by_torch_version(version: str, name: str) -> None:
    assert default_optimizer(version) == name


@pytest.mark.parametrize("version", ["", "2", "two", "2.x", "v2.8"])
def test_a_version_must_be_one(version: str) -> None:
    with pytest.raises(InvalidValueError, match="torch_version"):
        default_optimizer(version)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("adamw_torc", "adamw_torch"), ("paged_adam_8bits", "paged_adam_8bit"), ("adafctor", "adafactor"), ("SGD", "sgd")],
)
def test_unknown_names_get_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_optimizer(wrong)
    assert caught.value.code == "unknown_optimizer"
    assert meant in caught.value.suggestions


@pytest.mark.parametrize("name", sorted(set(optimizer_names()) - set(SUPPORTED)))
def test_refused_names_say_why(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        get_optimizer(name)


@pytest.mark.parametrize("name", SUPPORTED)
def test_unknown_options_are_refused_and_neutral_ones_are_not(name: str) -> None:
    needed = {"optim_target_modules": "all-linear"} if name.startswith(("galore", "apollo")) else {}
    assert get_optimizer(name, lr=1e-4, betas=[0.9, 0.95], eps=1e-8, **needed) == example(name)
    with pytest.raises(UnknownNameError, match="wieght_decay"):
        get_optimizer(name, wieght_decay=0.1, **needed)
    with pytest.raises(InvalidValueError, match="weight_decay"):
        get_optimizer(name, weight_decay=-1, **needed)


def test_what_the_name_settles_cannot_be_changed() -> None:
    with pytest.raises(UnknownNameError, match="optim_bits"):
        get_optimizer("adamw_8bit", optim_bits=32)


@pytest.mark.parametrize("text", ["momentum", "momentum=", "=0.9", "momentum=0.9=1", "momentum=0.9,,"])
def test_broken_optim_args(text: str) -> None:
    if text == "momentum=":
        with pytest.raises(InvalidValueError, match="momentum"):
            get_optimizer("sgd", optim_args=text)
        return
    with pytest.raises(InvalidValueError, match="optim_args"):
        get_optimizer("sgd", optim_args=text)


def test_optim_args_are_read_as_transformers_does() -> None:
    param = ParamInfo((8,), DType.FLOAT32)
    assert get_optimizer("sgd", optim_args="momentum=0.9, nesterov=True").state_tensors(param)
    assert not get_optimizer("sgd", optim_args="weight_decay=0.1").weight_decay
    assert get_optimizer("sgd", optim_args="momentum=0.9", momentum=0.0).state_tensors(param) == ()
    with pytest.raises(UnknownNameError, match="momentun"):
        get_optimizer("sgd", optim_args="momentun=0.9")
    with pytest.raises(UnknownNameError, match="transformers reads no other"):
        get_optimizer("adamw_torch", optim_args="amsgrad=True")


@pytest.mark.parametrize("rank", [0, -1, 1.5, "x", None, True, float("nan"), 10**400])
def test_ranks_that_cannot_be(rank: object) -> None:
    with pytest.raises(InvalidValueError, match="rank"):
        get_optimizer("galore_adamw", optim_target_modules="all-linear", rank=rank)


def test_options_must_be_plain_values() -> None:
    with pytest.raises(InvalidValueError, match="plain values"):
        get_optimizer("sgd", momentum={})


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_same_question_gets_the_same_object(name: str) -> None:
    assert example(name) is example(name)
    assert example(name).name == name
