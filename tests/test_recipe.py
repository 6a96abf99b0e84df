"""The recipe: what it accepts, what it refuses and in which words, and the files it is read from."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from memplan.errors import FileFormatError, InputError, InvalidValueError, MemplanError, UnknownNameError
from memplan.recipe import MAX_FILE_BYTES, Recipe, load_mapping, parse_json

# The public contract: the same in Python, JSON, YAML, TOML, on the command line and in a query string.
KEYS = (
    "model", "method", "peft", "lora_r", "lora_dropout", "target_modules", "num_virtual_tokens", "trainable",
    "autocast_adapter_dtype", "prepare_model_for_kbit_training", "task", "num_labels", "num_added_tokens",
    "tie_word_embeddings", "dtype", "precision", "autocast_dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_skip_modules",
    "quantization_config", "optim", "optim_args", "optim_target_modules", "optimizer_in_backward", "max_grad_norm",
    "gradient_accumulation_steps", "micro_batch_size", "sequence_length", "target_length", "padding", "packing",
    "packed_text_tokens",
    "activation_checkpointing", "attn_implementation", "loss", "stack", "stack_version", "torch_version", "keep_outputs",
    "use_cache", "gpu", "gpus", "expandable_segments", "empty_cache_steps",
)  # fmt: skip


def test_no_key_of_the_contract_is_lost() -> None:
    assert [key for key in KEYS if key not in Recipe.model_fields] == []


def test_only_the_model_is_needed() -> None:
    recipe = Recipe(model="gpt2")
    assert recipe.said() == {"model": "gpt2"}
    assert all(value is None for key, value in recipe if key != "model")


def test_said_keeps_what_was_given_and_false_and_zero_with_it() -> None:
    recipe = Recipe(padding=False, max_grad_norm=0, model="gpt2")
    assert recipe.said() == {"model": "gpt2", "max_grad_norm": 0, "padding": False}
    assert list(recipe.said()) == ["model", "max_grad_norm", "padding"]


def test_a_recipe_is_frozen_and_replace_makes_another() -> None:
    recipe = Recipe(model="gpt2", micro_batch_size=2)
    other = recipe.replace(micro_batch_size=4, lora_r=8)
    assert (recipe.micro_batch_size, other.micro_batch_size, other.lora_r) == (2, 4, 8)
    with pytest.raises(ValueError, match="frozen"):
        recipe.micro_batch_size = 3
    with pytest.raises(InvalidValueError):
        recipe.replace(micro_batch_size=0)


@pytest.mark.parametrize("key", ["target_modules", "trainable", "llm_int8_skip_modules", "optim_target_modules"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_become_tuples(key: str, kind: type) -> None:
    assert getattr(Recipe(model="gpt2", **{key: kind(["a", "b"])}), key) == ("a", "b")


def test_target_modules_may_be_a_regular_expression() -> None:
    assert Recipe(model="gpt2", target_modules="all-linear").target_modules == "all-linear"


@pytest.mark.parametrize("value", [True, False, "reentrant", "non-reentrant"])
def test_gradient_checkpointing_is_the_old_name(value: object) -> None:
    recipe = Recipe(model="gpt2", gradient_checkpointing=value)
    assert recipe == Recipe(model="gpt2", activation_checkpointing=value)
    assert recipe.activation_checkpointing == value


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(model="gpt2", activation_checkpointing=True, gradient_checkpointing=True)
    assert str(caught.value) == "activation_checkpointing and gradient_checkpointing are one setting: give one of them"
    assert Recipe(model="gpt2", activation_checkpointing=None, gradient_checkpointing=True).activation_checkpointing


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"bacth": 4}, "unknown recipe key 'bacth'\ndid you mean micro_batch_size or per_device_eval_batch_size?"),
    ({"Model": "gpt2"}, "unknown recipe key 'Model'\ndid you mean model?"),
    (
        {"micro_batch_size": -1},
        "micro_batch_size = -1 is not allowed: input should be greater than or equal to 1",
    ),
    ({"micro_batch_size": 0}, "micro_batch_size = 0 is not allowed: input should be greater than or equal to 1"),
    (
        {"micro_batch_size": 65_537},
        "micro_batch_size = 65537 is not allowed: input should be less than or equal to 65536",
    ),
    ({"micro_batch_size": 1.5}, "micro_batch_size = 1.5 is not allowed: input should be a valid integer"),
    ({"micro_batch_size": 2.0}, "micro_batch_size = 2.0 is not allowed: input should be a valid integer"),
    ({"micro_batch_size": "8"}, "micro_batch_size = '8' is not allowed: input should be a valid integer"),
    ({"micro_batch_size": True}, "micro_batch_size = True is not allowed: input should be a valid integer"),
    ({"lora_r": 10**30}, f"lora_r = {10**30} is not allowed: input should be less than or equal to 16384"),
    ({"padding": 1}, "padding = 1 is not allowed: input should be a valid boolean"),
    ({"load_in_4bit": "true"}, "load_in_4bit = 'true' is not allowed: input should be a valid boolean"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm = nan is not allowed: input should be a finite number"),
    ({"max_grad_norm": float("inf")}, "max_grad_norm = inf is not allowed: input should be a finite number"),
    ({"lora_dropout": 1.0}, "lora_dropout = 1.0 is not allowed: input should be less than 1"),
    ({"peft": [1]}, "peft = [1] is not allowed: input should be a valid dictionary"),
    (
        {"model": 3},
        "model = 3 is not allowed: input should be a valid string, or input should be a valid dictionary",
    ),
    (
        {"activation_checkpointing": "full"},
        "activation_checkpointing = 'full' is not allowed: input should be a valid boolean, or input should be "
        "'reentrant' or 'non-reentrant'",
    ),
    ({"precision": "bf16"}, "unknown precision 'bf16'\nallowed: amp, fp32, master, master-fp32-grads, pure"),
    ({"loss": "fused"}, "unknown loss 'fused'\ndid you mean fused_linear?\nallowed: chunked, default, fused_linear"),
    (
        {"bnb_4bit_quant_type": "nf5"},
        "unknown bnb_4bit_quant_type 'nf5'\ndid you mean nf4?\nallowed: fp4, nf4",
    ),
    ({"torch_version": "2.0"}, "unknown torch_version '2.0'\nallowed: 2.11, 2.12, 2.13, 2.14"),
    ({"attn_implementation": "spda"}, "unknown attn_implementation 'spda'\ndid you mean sdpa?\nallowed: eager, "
     "flash_attention_2, sdpa"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), MESSAGES, ids=[next(iter(keys)) for keys, _ in MESSAGES])
def test_bad_input_and_its_whole_message(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**{"model": "gpt2", **keys})
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_recipe_without_a_model() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(method="lora")
    assert str(caught.value) == "model is missing\nevery recipe names its model"


NUMBERS = {
    "lora_r": (1, 16_384),
    "num_virtual_tokens": (1, 65_536),
    "num_labels": (1, 1_000_000),
    "num_added_tokens": (0, 1_000_000),
    "gradient_accumulation_steps": (1, 1_000_000),
    "empty_cache_steps": (1, 1_000_000),
    "micro_batch_size": (1, 65_536),
    "per_device_eval_batch_size": (1, 65_536),
    "eval_accumulation_steps": (1, 1_000_000),
    "max_eval_samples": (1, 1_000_000),
    "max_new_tokens": (1, 16_777_216),
    "max_prompt_length": (1, 16_777_216),
    "packed_text_tokens": (1, 16_777_216),
    "sequence_length": (1, 16_777_216),
    "target_length": (1, 16_777_216),
    "gpus": (1, 65_536),
}


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_two_bounds(key: str) -> None:
    low, high = NUMBERS[key]
    for inside in (low, high):
        assert getattr(Recipe(model="gpt2", **{key: inside}), key) == inside
    for outside in (low - 1, high + 1, -(10**40), 10**40):
        with pytest.raises(InvalidValueError, match=f"^{key} = "):
            Recipe(model="gpt2", **{key: outside})


def test_the_table_of_bounds_is_complete() -> None:
    integers = {name for name, field in Recipe.model_fields.items() if re.search(r"\bint\b", str(field.annotation))}
    assert integers - set(NUMBERS) == set()


# -- files ------------------------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "model": {"model_type": "llama", "hidden_size": 48},
    "method": "lora",
    "peft": {"r": 4},
    "target_modules": ["q_proj", "v_proj"],
    "lora_dropout": 0.05,
    "micro_batch_size": 2,
    "padding": True,
}
TOML = """
method = "lora"
target_modules = ["q_proj", "v_proj"]
lora_dropout = 0.05
micro_batch_size = 2
padding = true
peft = {r = 4}
[model]
model_type = "llama"
hidden_size = 48
"""
YAML = """
model: {model_type: llama, hidden_size: 48}
method: lora
peft:
  r: 4
target_modules:
- q_proj
- v_proj
lora_dropout: 0.05
micro_batch_size: 2
padding: yes
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text"), [("r.json", json.dumps(SAID)), ("r.toml", TOML), ("r.yaml", YAML), ("r.YML", YAML)]
)
def test_three_formats_are_one_recipe(name: str, text: str, write: Any) -> None:
    assert Recipe.from_file(write(name, text)) == Recipe(**SAID)
    assert Recipe.from_file(str(write(name, text))) == Recipe(**SAID)


def test_what_was_said_goes_through_json_unchanged(write: Any) -> None:
    recipe = Recipe(**SAID)
    assert Recipe.from_file(write("r.json", json.dumps(recipe.said()))) == recipe


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", '{"recipe": {"model": "gpt2", "lora_r": 4}, "budget": {"gpu": "t4"}}'),
        ("r.toml", '[recipe]\nmodel = "gpt2"\nlora_r = 4\n[budget]\ngpu = "t4"'),
        ("r.yaml", "recipe:\n  model: gpt2\n  lora_r: 4\nbudget: {gpu: t4}"),
    ],
)
def test_a_table_named_recipe(name: str, text: str, write: Any) -> None:
    assert Recipe.from_file(write(name, text)) == Recipe(model="gpt2", lora_r=4)


def test_a_key_beside_the_table_is_not_dropped(write: Any) -> None:
    path = write("r.json", '{"recipe": {"model": "gpt2"}, "sequence_length": 8192}')
    with pytest.raises(FileFormatError) as caught:
        Recipe.from_file(path)
    assert str(caught.value) == f"{path}: sequence_length stands outside of `recipe`\nput every recipe key into it"


BROKEN: list[tuple[str, str | bytes, str]] = [
    ("r.json", '{"model": "gpt2",}', "{path} is not valid JSON: line 1 column 1"),
    ("r.json", '{"model": "a", "model": "b"}', "{path}: the key 'model' stands twice in one object"),
    ("r.json", '{"model": {"a": 1, "a": 2}}', "{path}: the key 'a' stands twice in one object"),
    ("r.json", '{"model": "a", "max_grad_norm": NaN}', "{path}: NaN is not JSON"),
    ("r.json", '{"model": "a", "max_grad_norm": -Infinity}', "{path}: -Infinity is not JSON"),
    ("r.json", "[" * 100_000, "{path} is nested too deeply"),
    ("r.json", "[1]", "{path} holds a list, not a mapping of recipe keys"),
    ("r.json", "", "{path} is not valid JSON: line 1 column 1: Expecting value"),
    ("r.toml", "model = ", "{path} is not valid TOML: "),
    ("r.toml", 'model = "a"\nmodel = "b"\n', "{path} is not valid TOML: "),
    ("r.yaml", "model: a\nmodel: b\n", "{path}: the key 'model' stands twice in one mapping"),
    ("r.yaml", "model: {a: 1, a: 2}\n", "{path}: the key 'a' stands twice in one mapping"),
    ("r.yaml", "model: &a gpt2\nmethod: *a\n", "{path}: line 2: aliases are not read"),
    ("r.yaml", "1: a\nmodel: gpt2\n", "{path}: the key 1 is not text"),
    ("r.yaml", "", "{path} holds a NoneType, not a mapping of recipe keys"),
    ("r.yaml", "model: [a", "{path} is not valid YAML: while parsing a flow sequence"),
    ("r.yaml", "model: a\n---\nmodel: b\n", "{path} is not valid YAML: expected a single document in the stream"),
    ("r.yaml", "model: !!python/object:os.system {}\n", "{path} is not valid YAML: could not determine a constructor"),
    ("r.yaml", b"model: \xff", "{path} is not UTF-8 text (byte 7)"),
    ("r.txt", "model: a", "{path}: unknown ending '.txt'\nallowed: .json, .toml, .yaml, .yml"),
    ("r", "model: a", "{path}: unknown ending ''\nallowed: .json, .toml, .yaml, .yml"),
    ("r.json", "1" * (MAX_FILE_BYTES + 1), "{path} is larger than 256 KiB, which no recipe needs"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files(name: str, content: str | bytes, message: str, write: Any) -> None:
    path = write(name, content)
    with pytest.raises(FileFormatError) as caught:
        Recipe.from_file(path)
    assert str(caught.value).startswith(message.replace("{path}", str(path)))
    assert caught.value.exit_code == 2


def test_missing_files_and_directories(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(FileFormatError) as caught:
            load_mapping(path)
        assert str(caught.value) == f"no such file: {path}"


def test_bad_keys_in_a_file_are_refused_as_anywhere(write: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe key 'bacth'"):
        Recipe.from_file(write("r.yaml", "model: gpt2\nbacth: 4"))


def test_many_nested_aliases_cost_nothing(write: Any) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(FileFormatError, match="more than 64 aliases"):
        Recipe.from_file(write("r.yaml", "\n".join([*levels, "model: *a11"])))


def test_parse_json_reads_what_json_reads() -> None:
    text = '{"a": [1, 2.5, null, true, "é"], "b": {"a": {}}}'
    assert parse_json(text, "text") == json.loads(text)


def test_the_toml_above_is_what_it_seems() -> None:
    assert tomllib.loads(TOML) == SAID


def test_every_refusal_is_a_memplan_error() -> None:
    for keys, _ in MESSAGES:
        with pytest.raises(MemplanError):
            Recipe(**{"model": "gpt2", **keys})
