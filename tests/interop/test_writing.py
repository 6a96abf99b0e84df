"""What is written reads back as the same recipe, and a template keeps everything that was not planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import memplan
from memplan import interop
from memplan.errors import FileFormatError, InputError, InvalidValueError, UnknownNameError, UnsupportedError
from memplan.interop.edit import edited
from memplan.interop.settings import SETTINGS
from memplan.interop.writing import write, write_text
from memplan.recipe import Recipe
from memplan.resolve import resolve

EXAMPLES = Path(__file__).parent / "examples"
WHOLE = ("trl", "axolotl", "llamafactory", "torchtune")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What a framework decides by itself.
APART = {
    "gpu", "gpus", "padding", "expandable_segments", "torch_version", "stack", "stack_version",
    "loss", "bnb_4bit_compute_dtype", "autocast_adapter_dtype", "prepare_model_for_kbit_training",
    "bnb_4bit_quant_storage", "method", "peft",
}  # fmt: skip


@st.composite
def recipes(draw: st.DrawFn, to: str = "") -> Recipe:
    simple = to == "torchtune"  # which has one attention and one checkpointing, and no autocast
    keys: dict[str, Any] = {
        "model": draw(st.sampled_from(["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B"])),
        "micro_batch_size": draw(st.integers(1, 64)),
        "sequence_length": draw(st.sampled_from([128, 512, 2048, 4096])),
        "gradient_accumulation_steps": draw(st.integers(1, 32)),
        "max_grad_norm": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "optim": draw(st.sampled_from(["adamw_torch_fused", "adamw_torch", "paged_adamw_8bit", "sgd", "adamw_8bit"])),
        "packing": draw(st.booleans()),
        "activation_checkpointing": draw(
            st.sampled_from([False, True, "non-reentrant"] if simple else [False, True, "reentrant", "non-reentrant"])
        ),
        "attn_implementation": draw(st.sampled_from(["sdpa"] if simple else ["sdpa", "eager", "flash_attention_2"])),
    }
    kind = draw(st.sampled_from(["full", "lora", "qlora"]))
    if kind == "qlora":
        if to != "axolotl":  # which quantizes in one way
            keys["bnb_4bit_quant_type"] = draw(st.sampled_from(["nf4"] if simple else ["nf4", "fp4"]))
            keys["bnb_4bit_use_double_quant"] = draw(st.just(True) if simple else st.booleans())
        keys["dtype"], keys["precision"] = "bfloat16", "pure" if simple else "amp"
    else:
        keys["dtype"], keys["precision"] = draw(
            st.sampled_from(
                [("bfloat16", "pure"), ("float32", "fp32")] + [("bfloat16", "amp"), ("float32", "amp")] * (not simple)
            )
        )
    keys["method"] = kind
    if kind != "full":
        keys["peft"] = {
            "r": draw(st.integers(1, 64)),
            "lora_dropout": draw(st.sampled_from([0.0, 0.05])),
            "target_modules": draw(st.sampled_from(["all-linear", ["q_proj", "v_proj"], LINEAR])),
        }
        if draw(st.booleans()):
            keys["peft"]["use_dora"] = True
    return Recipe(**keys)


def essentials(recipe: Recipe) -> dict[str, Any]:
    values = resolve(recipe).values
    found = {key: value for key, value in values.items() if key not in APART}
    mode = found["activation_checkpointing"]
    found["activation_checkpointing"] = "non-reentrant" if mode is True else mode
    peft = values.get("peft") or {}
    targets = peft.get("target_modules")
    linear = targets == "all-linear" or (isinstance(targets, list) and set(targets) == set(LINEAR))
    names = "all-linear" if linear else sorted(targets or ())
    lora = (peft.get("r", 8), peft.get("lora_dropout", 0.0), names, bool(peft.get("use_dora")))
    found["adapter"] = lora if peft else None
    return {key: str(value) for key, value in found.items()}


def written_or_rejected(recipe: Recipe, to: str, text: str | None = None) -> interop.Written:
    try:
        return write_text(recipe, to, text)
    except UnsupportedError:
        assume(False)
        raise


@pytest.mark.parametrize("to", WHOLE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_written_reads_back(to: str, data: st.DataObject) -> None:
    recipe = data.draw(recipes(to))
    written = written_or_rejected(recipe, to)
    reading = interop.read_text(written.text, name="new.yaml")
    assert reading.format == to
    assert essentials(reading.recipe) == essentials(recipe)
    assert reading.unknown_memory_like == ()
    # Writing again what was read changes nothing.
    assert write_text(reading.recipe, to, written.text).text == written.text


@pytest.mark.parametrize("to", WHOLE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_takes_any_other_recipe(to: str, data: st.DataObject) -> None:
    first, second = data.draw(recipes(to)), data.draw(recipes(to))
    text = written_or_rejected(first, to).text + "# the user's last word\nmy_own_key: 'kept'   # and why\n"
    written = written_or_rejected(second, to, text)
    assert essentials(interop.read_text(written.text, name="new.yaml").recipe) == essentials(second)
    assert "my_own_key: 'kept'   # and why" in written.text
    assert "# the user's last word" in written.text


LESS = {"peft_type": "LORA", "r": 8, "lora_dropout": 0.05, "target_modules": "all-linear"}
TEMPLATES = [
    ("axolotl_qlora_1b.yaml", {"micro_batch_size": 1, "gradient_accumulation_steps": 8}, 2),
    ("axolotl_qlora_1b.yaml", {"sequence_length": 1024, "optim": "paged_adamw_8bit"}, 2),
    ("axolotl_qlora_1b.yaml", {"activation_checkpointing": "reentrant"}, 2),
    ("llamafactory_lora_sft.yaml", {"gradient_accumulation_steps": 16}, 1),
    ("llamafactory_lora_sft.yaml", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, 3),
    ("trl_sft.yaml", {"micro_batch_size": 2}, 1),
    ("trl_sft.yaml", {"dtype": "bfloat16"}, 1),
    ("trl_qlora.yaml", {"sequence_length": 512, "peft": LESS}, 2),
    ("torchtune_lora_8b.yaml", {"micro_batch_size": 1, "activation_checkpointing": False}, 2),
    ("torchtune_lora_8b.yaml", {"optim": "paged_adamw_8bit"}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "lines"), TEMPLATES)
def test_only_planned_lines_of_an_example_change(name: str, changes: dict[str, Any], lines: int) -> None:
    path = EXAMPLES / name
    reading = interop.read(path)
    wanted = reading.recipe_with(**changes)
    written = write(wanted, reading.format, path)
    added = [line for line in written.diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert len(added) == lines, written.diff
    removed = [line for line in written.diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert len(removed) <= lines
    comments = [line[line.index("#") :] for line in path.read_text().splitlines() if "#" in line]
    assert all(comment in written.text for comment in comments)
    assert essentials(interop.read_text(written.text, name=name).recipe) == essentials(wanted)


WRITABLE = [path.name for path in sorted(EXAMPLES.iterdir()) if path.name.split("_")[0] in SETTINGS]


@pytest.mark.parametrize("name", WRITABLE)
def test_an_example_written_into_itself_does_not_change(name: str) -> None:
    path, text = EXAMPLES / name, (EXAMPLES / name).read_text()
    reading = interop.read(path)
    if reading.format in WHOLE:
        for recipe in (reading.recipe, {}):
            written = write(recipe, reading.format, path)
            assert (written.text, written.diff) == (text, "")
    # A recipe that names the model alone says nothing that the file says.
    model = reading.keys.get("model", "meta-llama/Llama-3.2-1B")
    precision = {"precision": "master", "dtype": "bfloat16"} if name == "deepspeed_zero3_auto.json" else {}
    written = write(Recipe(model=model, **precision), reading.format, path)
    assert (written.text, written.diff) == (text, "")
    assert written.reading == reading


CHANGES: list[dict[str, Any]] = [
    {"micro_batch_size": 3},
    {"gradient_accumulation_steps": 7},
    {"sequence_length": 640},
    {"max_grad_norm": 0.7},
    {"activation_checkpointing": False},
    {"packing": True},
]


@pytest.mark.parametrize("name", [name for name in WRITABLE if name.split("_")[0] in WHOLE])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_change_of_an_example_changes_nothing_else(name: str, change: dict[str, Any]) -> None:
    path = EXAMPLES / name
    reading = interop.read(path)
    if reading.keys.get("optimizer_in_backward") and not {"gradient_accumulation_steps", "max_grad_norm"}.isdisjoint(
        change
    ):
        with pytest.raises(InvalidValueError, match="torchtune refuses it"):
            write(change, reading.format, path)
        return
    written = write(change, reading.format, path)
    assert written.reading is not None
    before, after = dict(reading.keys), dict(written.reading.keys)
    moved = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    following = {key for key, leader in reading.follows.items() if leader in change}  # as the framework makes them
    assert moved - {"padding"} - following <= set(change)
    assert {key: after[key] for key in change} == change
    assert len(written.reading.unsupported) == len(reading.unsupported)


def test_an_open_length_stays_open_until_one_is_said() -> None:
    path = EXAMPLES / "torchtune_full_8b.yaml"
    reading = interop.read(path)
    assert reading.open_length
    for change in ({}, {"micro_batch_size": 1}, {"optim": "adafactor", "sequence_length": None}):
        if change.get("optim"):
            with pytest.raises(UnsupportedError):
                write(change, "torchtune", path)
            continue
        assert "max_seq_len: null" in write(change, "torchtune", path).text
    given = write(reading.recipe_with(sequence_length=2048), "torchtune", path)
    assert [line for line in given.diff.splitlines() if line[:1] in "+-"][2:] == [
        "-  max_seq_len: null",
        "+  max_seq_len: 2048",
    ]


def test_what_a_recipe_leaves_open_stays_and_is_told() -> None:
    path = EXAMPLES / "axolotl_qlora_1b.yaml"
    written = write(Recipe(model="meta-llama/Llama-3.2-1B", micro_batch_size=1), "axolotl", path)
    assert [line for line in written.diff.splitlines() if line[:1] in "+-"][2:] == [
        "-micro_batch_size: 2",
        "+micro_batch_size: 1",
    ]
    told = [text for text in written.implied if text.startswith("gradient_accumulation_steps stays 4")]
    assert told
    assert "the recipe does not say it, its default is 1" in told[0]
    assert (
        write(Recipe(model="meta-llama/Llama-3.2-1B", method="full"), "axolotl", path).reading.keys.get("peft") is None
    )


def test_a_file_of_another_framework_is_not_written_into() -> None:
    with pytest.raises(FileFormatError, match="is a config of trl, not of axolotl"):
        write({"micro_batch_size": 1}, "axolotl", EXAMPLES / "trl_sft.yaml")


def test_a_new_file_tells_what_is_lost() -> None:
    recipe = interop.read(EXAMPLES / "axolotl_full_fsdp.yaml").recipe
    assert any(text.startswith("not written: ") and "FSDP" in text for text in write(recipe, "axolotl").implied)


def test_deepspeed_keeps_its_sections() -> None:
    path = EXAMPLES / "deepspeed_zero2_offload.json"
    reading = interop.read(path)
    wanted = reading.recipe_with(model="meta-llama/Llama-3.2-1B", micro_batch_size=2)
    written = write(wanted, "deepspeed", path)
    before, after = json.loads(path.read_text()), json.loads(written.text)
    assert after.pop("train_micro_batch_size_per_gpu") == 2
    assert after.pop("train_batch_size") == 16
    del before["train_micro_batch_size_per_gpu"], before["train_batch_size"]
    assert before == after
    assert list(json.loads(written.text)) == list(json.loads(path.read_text()))


def test_accelerate() -> None:
    recipe = Recipe(model="meta-llama/Llama-3.2-1B", precision="amp", gpus=4)
    reading = interop.read_text(write(recipe, "accelerate").text, name="a.yaml")
    assert dict(reading.keys) == {"precision": "amp", "autocast_dtype": "bfloat16", "gpus": 4}
    path = EXAMPLES / "accelerate_single_gpu.yaml"
    plain = Recipe(model="meta-llama/Llama-3.2-1B", precision="pure", dtype="bfloat16")
    changed = [line for line in write(plain, "accelerate", path).diff.splitlines() if line[:1] in "+-"][2:]
    assert changed == ["-mixed_precision: 'bf16'", "+mixed_precision: 'no'"]


# -- what cannot be said ----------------------------------------------------------------------------------

MODEL = "meta-llama/Llama-3.2-1B"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("trl", {"method": "ia3"}, "TRL has no config for ia3"),
    ("torchtune", {"optim": "adafactor"}, "no optimizer like adafactor"),
    ("torchtune", {"method": "lora", "target_modules": ["up_proj"]}, "cannot adapt just up_proj"),
    ("torchtune", {"model": "mistralai/Mistral-7B-v0.3"}, "no builder for mistralai/Mistral-7B-v0.3"),
    ("torchtune", {"precision": "amp"}, "torchtune cannot say precision = 'amp'"),
    (
        "llamafactory",
        {"method": "lora", "peft": {"rank_pattern": {"q_proj": 4}}},
        "LLaMA-Factory cannot say peft.rank_pattern",
    ),
    ("axolotl", {"method": "lora", "peft": {"bias": "all"}}, "axolotl cannot say peft.bias = 'all'"),
    ("torchtune", {"method": "lora", "peft": {"use_rslora": True}}, "torchtune cannot say peft.use_rslora = True"),
    ("axolotl", {"num_added_tokens": 8}, "axolotl cannot say num_added_tokens = 8"),
    ("axolotl", {"method": "qlora", "bnb_4bit_quant_storage": "uint8"}, "cannot say bnb_4bit_quant_storage = 'uint8'"),
    ("deepspeed", {"precision": "amp"}, "does not train with precision amp"),
    ("trl", {"model": {"model_type": "gpt2"}}, "names its model"),
]


@pytest.mark.parametrize(("to", "keys", "message"), REFUSED)
def test_what_a_format_cannot_say_is_refused(to: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        write(Recipe(**{"model": MODEL, **keys}), to)
    assert message in caught.value.message
    assert caught.value.exit_code == 3


def test_what_a_framework_implies_is_said() -> None:
    written = write(Recipe(model=MODEL, method="qlora"), "axolotl")
    assert "bnb_4bit_quant_storage is bfloat16 in axolotl, not uint8" in written.implied
    assert written.reading is not None
    assert written.reading.keys["bnb_4bit_quant_storage"] == "bfloat16"


def test_changes_of_a_template() -> None:
    written = write({"micro_batch_size": 1}, "axolotl", EXAMPLES / "axolotl_qlora_1b.yaml")
    assert [line for line in written.diff.splitlines() if line[:1] in "+-"][2:] == [
        "-micro_batch_size: 2",
        "+micro_batch_size: 1",
    ]
    with pytest.raises(InputError, match="changes need a template"):
        write({"micro_batch_size": 1}, "axolotl")


def test_a_plan_is_exported_and_reads_back_as_planned() -> None:
    recipe = Recipe(model="meta-llama/Llama-3.1-8B", method="lora", target_modules="all-linear", micro_batch_size=8,
                    sequence_length=4096, dtype="bfloat16", precision="amp")  # fmt: skip
    plan = memplan.plan(recipe, gpu="rtx-4090")
    assert plan.smallest is not None
    planned = Recipe(**plan.smallest.recipe)
    for to in ("axolotl", "llamafactory", "trl"):
        reading = interop.read_text(write(planned, to).text, name="planned.yaml")
        assert essentials(reading.recipe) == essentials(planned)


def test_unknown_targets() -> None:
    with pytest.raises(UnknownNameError, match="did you mean axolotl"):
        write(Recipe(model=MODEL), "axolot")
    assert set(SETTINGS) <= set(interop.format_names())


# -- editing text -----------------------------------------------------------------------------------------

EDITS = [
    ("a: 1  # why\nb: 'x'\n", {("a",): 2}, "a: 2  # why\nb: 'x'\n"),
    ("a: 1\nb: 'x'\n", {("b",): "y"}, "a: 1\nb: 'y'\n"),
    ('b: "x"\n', {("b",): "y"}, 'b: "y"\n'),
    ("a: True\n", {("a",): False}, "a: False\n"),
    ("a:   # empty\nb: 1\n", {("a",): 3}, "a: 3   # empty\nb: 1\n"),
    ("a:\n  - x   # first\n  - y\n# end\nb: 1\n", {("a",): ["z"]}, "a: [z]\n# end\nb: 1\n"),
    ("a:\n  x: 1\n  y: 2\nb: 1\n", {("a", "z"): 3}, "a:\n  x: 1\n  y: 2\n  z: 3\nb: 1\n"),
    ("a: {x: 1}\n", {("a", "y"): True}, "a: {x: 1, y: true}\n"),
    ("a: {}\n", {("a", "y"): 1}, "a: {y: 1}\n"),
    ("a: 1", {("b", "c"): 1.5}, "a: 1\nb:\n  c: 1.5\n"),
    ("a: null\n", {("a", "b"): "no"}, 'a: {b: "no"}\n'),
    ("a: |\n  text\n  more\nb: 2\n", {("a",): "x"}, "a: x\nb: 2\n"),
    ("a: 1e-05\n", {("a",): 1e-05}, "a: 1.0e-05\n"),
    ("a: 1\n", {("a",): 1}, "a: 1\n"),
    ("é: 'ü'  # ö\na: 1\n", {("a",): 2}, "é: 'ü'  # ö\na: 2\n"),
    ("- a\n", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "changes", "expected"), EDITS)
def test_edits_of_yaml(text: str, changes: Any, expected: str) -> None:
    if changes is None:
        with pytest.raises(FileFormatError, match="not a mapping"):
            edited(text, "yaml", {("a",): 1})
    else:
        assert edited(text, "yaml", changes) == expected


def test_edits_of_json() -> None:
    text = '{\n\t"a": 1,\n\t"b": {"c": [1, 2]},\n\t"d": {}\n}\n'
    changes = {("a",): 2.5, ("b", "c"): "x", ("b", "e"): None, ("d", "f"): True, ("g", "h"): 1}
    found = edited(text, "json", changes)
    assert found == ('{\n\t"a": 2.5,\n\t"b": {"c": "x", "e": null},\n\t"d": {"f": true},\n\t"g": {"h": 1}\n}\n')
    assert json.loads(edited("{}", "json", {("a",): 1})) == {"a": 1}


def test_a_shared_value_is_not_changed() -> None:
    with pytest.raises(FileFormatError, match="f:2: b shares its value with another key"):
        edited("a: &x 1\nb: *x\n", "yaml", {("b",): 2}, "f")
    with pytest.raises(FileFormatError, match="TOML is read and not written"):
        edited("a = 1", "toml", {("a",): 2})


_KEYS = st.text("abcxyz_", min_size=1, max_size=6)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(_KEYS, st.booleans() | st.integers() | st.text(max_size=8), min_size=1),
    st.text(max_size=10) | st.integers() | _FLOATS | st.lists(st.text(max_size=5), max_size=3),
    st.sampled_from(["json", "yaml"]),
)
def test_any_value_can_be_set(data: dict[str, Any], value: Any, syntax: Any) -> None:
    from memplan.documents import parse

    text = ""
    for key, entry in data.items():
        text = edited(text, syntax, {(key,): entry})
    assert parse(text, syntax, "f").data == data
    for path in ((next(iter(data)),), ("new",), ("nested", "key")):
        text = edited(text, syntax, {path: value})
        found = parse(text, syntax, "f").data
        for key in path:
            found = found[key]
        assert found == value
