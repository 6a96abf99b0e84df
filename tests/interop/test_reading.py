"""Detection, conflicts, defaults by version, unknown keys, and what a hostile file can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan import interop
from memplan.engine import estimate
from memplan.errors import FileFormatError, InputError, MemplanError, UnknownNameError
from memplan.estimate import Fits
from memplan.interop.defaults import framework_default, in_range, list_defaults, reference_version
from memplan.interop.names import is_memory_like, words_of
from memplan.recipe import Recipe
from memplan.resolve import resolve

TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 320}  # fmt: skip


def yaml(text: str, **extra: Any) -> interop.Reading:
    return interop.read_text(text, name="run.yaml", **extra)


# -- detection --------------------------------------------------------------------------------------------


def test_an_ambiguous_file_lists_its_candidates() -> None:
    with pytest.raises(FileFormatError) as caught:
        yaml("base_model: gpt2\nfinetuning_type: lora\nmodel_name_or_path: gpt2\n")
    assert caught.value.code == "ambiguous_format"
    assert "axolotl, llamafactory" in caught.value.message
    assert "--format" in caught.value.hint


def test_a_named_format_settles_it() -> None:
    reading = yaml("base_model: gpt2\nfinetuning_type: lora\nbf16: true\n", format="axolotl")
    assert reading.format == "axolotl"
    assert reading.keys["model"] == "gpt2"


def test_an_unknown_file_lists_the_formats() -> None:
    with pytest.raises(FileFormatError) as caught:
        yaml("colour: blue\n")
    assert caught.value.code == "unknown_format"
    assert all(name in caught.value.hint for name in interop.format_names())


def test_an_unknown_format_has_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean axolotl"):
        yaml("a: 1\n", format="axolotol")


def test_a_recipe_file_is_a_format_like_the_others() -> None:
    reading = yaml("model: gpt2\nmicro_batch_size: 4\n")
    assert (reading.format, dict(reading.keys)) == ("recipe", {"model": "gpt2", "micro_batch_size": 4})
    assert [(entry.key, entry.line) for entry in reading.used] == [("model", 1), ("micro_batch_size", 2)]
    with pytest.raises(UnknownNameError, match="bacth"):
        yaml("model: gpt2\nbacth: 4\n").recipe  # noqa: B018


# -- several files ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Any:
    def write(**texts: Any) -> list[Path]:
        paths = []
        for name, text in texts.items():
            path = tmp_path / name.replace("_yaml", ".yaml").replace("_json", ".json")
            path.write_text(text if isinstance(text, str) else json.dumps(text))
            paths.append(path)
        return paths

    return write


def test_files_of_one_run_combine(files: Any) -> None:
    reading = interop.read_many(
        files(
            args_json={"per_device_train_batch_size": 3, "bf16": True, "adam_epsilon": 1e-8},
            adapter_json={"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "gpt2"},
            bnb_json={"load_in_4bit": True, "quant_method": "bitsandbytes"},
            config_json=TINY,
            acc_yaml="distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: 'no'\n",
        )
    )
    keys = dict(reading.keys)
    assert reading.format == "transformers + peft + bitsandbytes + model-config + accelerate"
    assert keys["model"] == TINY
    assert (keys["micro_batch_size"], keys["precision"], keys["gpus"]) == (3, "amp", 2)
    assert (keys["bnb_4bit_quant_type"], keys["bnb_4bit_compute_dtype"]) == ("fp4", "float32")
    answer = reading.estimate(sequence_length=16, gpu="b200")
    assert answer.verdict_report is not None
    assert answer.verdict_report.fits is Fits.UNCERTAIN


def test_deepspeed_takes_auto_from_the_training_arguments(files: Any) -> None:
    zero = {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}
    args = {"per_device_train_batch_size": 3, "bf16": True, "deepspeed": "zero.json", "adam_epsilon": 1e-8}
    reading = interop.read_many(files(args_json=args, zero_json=zero))
    assert (reading.keys["micro_batch_size"], reading.keys["precision"], reading.keys["dtype"]) == (
        3,
        "master",
        "bfloat16",
    )
    assert "gpus" not in reading.keys
    assert [text.partition(": ")[2] for text in reading.unsupported] == ["DeepSpeed (zero.json)", "ZeRO stage 1"]


def test_two_files_that_disagree_are_refused(files: Any) -> None:
    zero = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 0}}
    with pytest.raises(InputError) as caught:
        interop.read_many(files(args_json={"per_device_train_batch_size": 3, "adam_epsilon": 1e-8}, zero_json=zero))
    assert "micro_batch_size is said twice" in caught.value.message
    assert "args.json:1" in caught.value.message
    assert "zero.json:1" in caught.value.message


def test_a_default_gives_way_to_another_file(files: Any) -> None:
    zero = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 0}}
    for names in (("args_json", "zero_json"), ("zero_json", "args_json")):
        contents = {"args_json": {"adam_epsilon": 1e-8}, "zero_json": zero}
        reading = interop.read_many(files(**{name: contents[name] for name in names}))
        assert reading.keys["micro_batch_size"] == 2
        assert "micro_batch_size" not in {entry.recipe_key for entry in reading.defaults}


def test_no_file_and_no_model(files: Any) -> None:
    with pytest.raises(InputError, match="no config file"):
        interop.read_many([])
    with pytest.raises(InputError, match="no model is named"):
        yaml("per_device_train_batch_size: 3\n").recipe  # noqa: B018


# -- defaults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "loss", "checkpointing"),
    [
        ("0.21.0", "default", False),
        ("0.24.0", "default", "non-reentrant"),
        ("1.6.0", "default", "non-reentrant"),
        ("1.7.0", "chunked", "non-reentrant"),
        ("1.14.0", "chunked", "non-reentrant"),
        ("1.16.0", "chunked", "non-reentrant"),
        (None, "chunked", "non-reentrant"),
    ],
)
def test_trl_by_version(version: str | None, loss: str, checkpointing: object) -> None:
    reading = yaml("model_name_or_path: gpt2\nmax_length: 64\ndtype: bfloat16\n", version=version)
    assert (reading.keys["loss"], reading.keys["activation_checkpointing"]) == (loss, checkpointing)
    assert reading.keys["stack_version"] == (version or reference_version("trl"))


def test_trl_says_which_loss_it_means() -> None:
    text = "model_name_or_path: gpt2\nmax_length: 64\nloss_type: nll\n"
    assert yaml(text, version="1.8.0").keys["loss"] == "default"
    assert yaml(text, version="1.15.0").keys["loss"] == "chunked"


def test_a_default_that_is_not_known_is_an_error() -> None:
    with pytest.raises(InputError, match=r"default of dtype in trl 0.24.0 is not known"):
        yaml("model_name_or_path: gpt2\nmax_length: 64\n", version="0.24.0")


def test_the_table_of_defaults_is_sound() -> None:
    rows = list_defaults()
    assert len(rows) > 50
    for row in rows:
        assert row.source
        assert row.date.startswith("20"), row
        in_range("1.0", row.versions)
    # No two rows of one key hold for the same version.
    for framework in {row.framework for row in rows}:
        for version in (
            "0.5.0",
            "0.19.0",
            "0.22.0",
            "1.0.0",
            "1.7.0",
            "1.15.0",
            "4.40.0",
            "5.0.0",
            reference_version(framework),
        ):
            found = [row.key for row in rows if row.framework == framework and in_range(version, row.versions)]
            assert len(found) == len(set(found)), (framework, version)
        for key in {row.key for row in rows if row.framework == framework}:
            assert framework_default(framework, key).key == key


@pytest.mark.parametrize(
    ("version", "versions", "inside"),
    [("1.16.0", ">=1.0", True), ("0.9.5", ">=0.9,<0.10", True), ("0.10", "<0.9", False), ("5.0.0.dev0", ">=5.0", True),
     ("1.14", ">=1.15", False), ("2", "<=2.0", True), ("2.1", ">2,<3", True), ("v1.2", "==1.2", True)],
)  # fmt: skip
def test_ranges(version: str, versions: str, inside: bool) -> None:
    assert in_range(version, versions) is inside


def test_a_version_is_a_number() -> None:
    with pytest.raises(InputError, match="a version such as"):
        yaml("model_name_or_path: gpt2\nmax_length: 64\n", version="newest")


# -- keys that nobody knows -------------------------------------------------------------------------------


def test_unknown_keys() -> None:
    text = "base_model: gpt2\nbf16: true\nmicro_batch_sise: 8\nwandb_watch: x\nfancy_offload: off\nnew_offload: true\n"
    reading = yaml(text)
    assert reading.unknown_memory_like == (
        "run.yaml:3: micro_batch_sise (did you mean micro_batch_size?)",
        "run.yaml:6: new_offload (did you mean ple_cpu_offload?)",
    )
    assert "wandb_watch" in reading.ignored
    assert "fancy_offload" in reading.ignored
    assert [text for text in reading.recipe_with(model=TINY).uncovered if "micro_batch_sise" in text]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("max_seq_len", True), ("cpuOffload", True), ("load_in_2bit", False), ("zero_stage", True), ("run_name", False),
     ("num_train_epochs", False), ("tensorboard_dir", False), ("kv_cache_dtype", True), ("layers", True)],
)  # fmt: skip
def test_names_that_sound_like_memory(key: str, expected: bool) -> None:
    assert is_memory_like(key) is expected


def test_words() -> None:
    assert words_of("maxSeq_len-fp8") == ["max", "seq", "len", "fp8"]


# -- every error has its place ----------------------------------------------------------------------------

WRONG = [
    (
        "base_model: gpt2\nmicro_batch_size: many\n",
        "run.yaml:2: micro_batch_size = 'many' is not allowed: a whole number",
    ),
    (
        "base_model: gpt2\ngradient_checkpointing: maybe\n",
        "run.yaml:2: gradient_checkpointing = 'maybe' is not allowed: true or false",
    ),
    ("base_model: [gpt2]\n", None),
    ("base_model: gpt2\nfsdp_config: 3\nplugins: liger\n", "run.yaml:3: plugins = 'liger' is not allowed: a list"),
    ("per_device_train_batch_size: 2\nbf16: true\nfp16: true\n", "run.yaml:2: bf16 and fp16 exclude each other"),
    ("per_device_train_batch_size: 2\noptim_args: rank\n", "run.yaml:2: optim_args = 'rank' is not allowed"),
    ("distributed_type: FSDP\nfsdp_config: yes\n", "run.yaml:2: fsdp_config = True is not allowed: a mapping"),
    ("model:\n  _component_: x\ndtype: bf16\n", "run.yaml: batch_size = None is not allowed"),
    (
        "model:\n  _component_: x\ndtype: ${precision}\nbatch_size: 1\n",
        "run.yaml: ${precision} refers to nothing in this file",
    ),
    ("model:\n  _component_: x\ndtype: ${a}\na: ${dtype}\nbatch_size: 1\n", "run.yaml: a ${...} that refers to itself"),
    ("base_model: gpt2\nbase_model: b\n", "run.yaml: the key 'base_model' stands twice in one mapping (line 2)"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_values(text: str, message: str | None) -> None:
    with pytest.raises(MemplanError) as caught:
        yaml(text).recipe  # noqa: B018
    assert caught.value.exit_code == 2
    if message is not None:
        assert caught.value.message.startswith(message)


def test_interpolation() -> None:
    text = "model: {_component_: torchtune.models.qwen2.qwen2_0_5b}\nsize: 3\nbatch_size: ${sizes.b}\nsizes: {b: '${size}'}\n"
    text += "dtype: bf16\ntokenizer: {_component_: t, max_seq_len: 64, path: 'a/${dtype}/${sizes.b}'}\n"
    assert yaml(text).keys["micro_batch_size"] == 3
    growing = "a: ${b}${b}${b}${b}\nb: ${c}${c}${c}${c}\nc: ${a}\ndtype: bf16\nbatch_size: 1\nmodel: {_component_: x}\n"
    with pytest.raises(FileFormatError, match="refers to itself"):
        yaml(growing)


@pytest.mark.parametrize("builder", [
    "llama2.lora_llama2_7b", "llama3_1.lora_llama3_1_8b", "llama3_2.lora_llama3_2_1b", "mistral.lora_mistral_7b",
    "qwen2_5.lora_qwen2_5_3b", "gemma.lora_gemma_2b", "gemma2.lora_gemma2_9b", "phi3.lora_phi3_mini", "phi4.lora_phi4_14b",
])  # fmt: skip
def test_single_device_recipes_of_torchtune_are_walked(builder: str) -> None:
    reading = yaml(
        f"model: {{_component_: torchtune.models.{builder}, lora_attn_modules: [q_proj, v_proj, output_proj],\n"
        "  apply_lora_to_mlp: true, lora_rank: 8, lora_alpha: 16}\n"
        "tokenizer: {_component_: t, max_seq_len: 64}\noptimizer: {_component_: torch.optim.AdamW, fused: true}\n"
        "loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}\n"
        "batch_size: 2\ndtype: bf16\nenable_activation_checkpointing: true\ncompile: false\n"
    )
    answer = estimate(reading.recipe)
    assert (reading.unsupported, answer.unsupported) == ((), ())
    assert answer.recipe["stack"] == "torchtune"
    assert answer.peak.phase is not None


def test_nothing_in_a_file_is_imported_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    reading = yaml("model: {_component_: evil.run}\ndtype: bf16\nbatch_size: 1\noptimizer: {_component_: evil.Adam}\n")
    assert len(reading.unsupported) == 2
    with pytest.raises(FileFormatError, match="could not determine a constructor"):
        yaml("base_model: !!python/object/apply:os.system ['true']\n")


def test_aliases_within_limits() -> None:
    reading = yaml("base_model: gpt2\nbf16: &on true\ngradient_checkpointing: *on\n")
    assert reading.keys["activation_checkpointing"] == "non-reentrant"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 8))
    with pytest.raises(FileFormatError, match="aliases repeat a value too often"):
        yaml(f"base_model: gpt2\n{bomb}")
    with pytest.raises(FileFormatError, match="an alias that contains itself"):
        yaml("base_model: &a [*a]\n")


def test_the_recipe_file_still_takes_no_alias() -> None:
    with pytest.raises(FileFormatError, match="line 2: aliases are not read"):
        yaml("model: &a gpt2\nmethod: *a\n")


# -- what frameworks do beyond their keys -----------------------------------------------------------------


@pytest.mark.parametrize(("text", "packing", "padding"), [
    ("packing: true\n", True, None), ("packing: true\npacking_strategy: bfd_split\n", True, None),
    ("packing: true\npadding_free: true\n", True, None), ("packing: true\npacking_strategy: wrapped\n", False, False),
    ("packing: false\npacking_strategy: wrapped\n", False, True),
])  # fmt: skip
def test_how_trl_packs(text: str, packing: bool, padding: bool | None) -> None:
    """Wrapped texts fill rows of their own, with a mask of ones; otherwise a packed batch is a single row without one."""
    found = yaml(f"model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 2\n{text}")
    assert (found.keys["packing"], found.keys.get("padding")) == (packing, padding)
    assert not found.uncovered


def test_padding_free_batches_of_trl_that_are_not_packed_are_not_covered() -> None:
    found = yaml("model_name_or_path: gpt2\nmax_length: 64\npadding_free: true\n")
    assert any("padding-free" in text for text in found.uncovered)


@pytest.mark.parametrize(
    ("text", "padding"),
    [
        ("model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 2\n", True),
        ("model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 1\n", None),
        ("model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 2\npacking: true\n", None),
        ("base_model: gpt2\nmicro_batch_size: 2\n", True),
        ("base_model: gpt2\nmicro_batch_size: 2\nsample_packing: true\n", None),
        ("model_name_or_path: gpt2\nfinetuning_type: lora\nper_device_train_batch_size: 2\nbf16: true\n", True),
    ],
)
def test_batches_of_several_sequences_are_padded(text: str, padding: bool | None) -> None:
    reading = yaml(text)
    assert reading.keys.get("padding") is padding
    assert ("padding" in {entry.recipe_key for entry in reading.defaults}) is bool(padding)


def test_llamafactory_packs_when_it_pretrains() -> None:
    text = "model_name_or_path: gpt2\nfinetuning_type: full\nstage: pt\nbf16: true\n"
    assert yaml(text).keys["packing"] is True
    assert yaml(f"{text}packing: false\n").keys["packing"] is False


@pytest.mark.parametrize(
    "text",
    [
        "model_name_or_path: gpt2\nmax_length: 64\nbeta: 0.1\n",
        "model_name_or_path: gpt2\nmax_length: 64\nnum_generations: 8\nuse_vllm: true\n",
        "model_name_or_path: gpt2\nfinetuning_type: lora\nstage: dpo\nbf16: true\n",
        "base_model: gpt2\nrl: dpo\n",
        "base_model: gpt2\nmodel_type: AutoModelForSequenceClassification\n",
    ],
)
def test_other_ways_to_train_are_not_taken_for_fine_tuning(text: str) -> None:
    words = ("another trainer", "preference training", "the head of")
    assert any(word in entry for entry in yaml(text).unsupported for word in words)


def test_an_estimate_says_whose_default_a_value_is() -> None:
    reading = yaml("model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 2\n")
    sources = reading.estimate(model=TINY).recipe_sources
    assert sources["micro_batch_size"] == "user"
    assert sources["dtype"] == "trl >=1.0: trl/trainer/model_config.py:71 (1.16.0)"
    changed = reading.recipe_with(model=TINY).replace(dtype="bfloat16")
    assert resolve(changed).sources["dtype"] == "user"
    assert resolve(changed).sources["optim"].startswith("transformers >=5.0: ")
    assert changed == Recipe(**changed.said())


def test_a_config_of_axolotl_that_changes_the_model_is_not_covered() -> None:
    text = "base_model: gpt2\nadapter: lora\nbf16: true\noverrides_of_model_config:\n  n_layer: 48\n"
    assert any("another config of the model" in entry for entry in yaml(text).unsupported)


AXOLOTL = "base_model: meta-llama/Llama-3.2-1B\nadapter: lora\nlora_target_linear: true\nbf16: true\n"
TRL = "model_name_or_path: meta-llama/Llama-3.2-1B\ndataset_name: d\nmax_length: 512\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (AXOLOTL + "use_ema: true\n", "a moving average of the weights"),
        (
            AXOLOTL + "special_tokens:\n  pad_token: <|pad|>\n",
            "special tokens that the vocabulary may not have yet: <|pad|>",
        ),
        (AXOLOTL + "special_tokens:\n  additional_special_tokens: [<a>, <b>]\n", "<a>, <b>"),
        (AXOLOTL + "auto_find_batch_size: true\n", "smaller whenever memory runs out"),
        (TRL + "auto_find_batch_size: true\n", "smaller whenever memory runs out"),
    ],
)
def test_what_changes_the_memory_in_a_way_of_its_own_is_not_covered(text: str, part: str) -> None:
    reading = yaml(text)
    (found,) = [entry for entry in reading.uncovered if part in entry]
    assert found.startswith("run.yaml:")
    assert reading.estimate(gpu="h200").verdict().fits is not Fits.FITS


def test_tokens_that_are_added_make_the_vocabulary_larger() -> None:
    reading = yaml(AXOLOTL + "tokens: [<a>, <b>, <a>]\nspecial_tokens:\n  pad_token: <|end_of_text|>\nuse_ema: false\n")
    assert reading.keys["num_added_tokens"] == 2
    assert not [entry for entry in reading.uncovered if "token" in entry or "average" in entry]
