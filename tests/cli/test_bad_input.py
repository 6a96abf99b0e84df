"""Every class of bad input: the whole message, exit code 2, nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.catalog.gpus import list_gpus
from memplan.methods import list_methods
from memplan.optimizers.registry import optimizer_names
from tests.cli.conftest import MISTRAL, Run

ESTIMATE = ("estimate", *MISTRAL)
LORA = (*ESTIMATE, "--method", "lora")
OPTIONS = "  `memplan estimate --help` lists the options\n"

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown model": (
        ("estimate", "--model", "mistral-7b-v9"),
        "error: unknown model 'mistral-7b-v9'\n"
        "  did you mean mistralai/Mistral-7B-v0.3 or mistralai/Mistral-7B-v0.1 or mistralai/Mixtral-8x7B-v0.1?\n"
        "  `memplan models` lists all 130 cards\n"
        "  or give the path of a config.json, or of a directory that holds one\n",
    ),
    "unknown method": (
        (*ESTIMATE, "--method", "lorra"),
        "error: unknown method 'lorra'\n"
        "  did you mean lora or xlora or qlora?\n"
        f"  allowed: {', '.join(method.name for method in list_methods())}\n",
    ),
    "unknown GPU": (
        (*LORA, "--gpu", "rtx-4900"),
        "error: unknown GPU 'rtx-4900'\n"
        "  did you mean rtx-4090 or rtx-4080 or rtx-4070?\n"
        f"  allowed: {', '.join(sorted(gpu.id for gpu in list_gpus()))}\n",
    ),
    "unknown optimizer": (
        (*LORA, "--optim", "adamw_touch"),
        "error: unknown optimizer 'adamw_touch'\n"
        "  did you mean adamw_torch or adamw_torch_xla or adamw_torch_8bit?\n"
        f"  allowed: {', '.join(sorted(optimizer_names()))}\n",
    ),
    "unknown option": (
        (*ESTIMATE, "--bacth", "3"),
        "error: memplan estimate has no option --bacth\n"
        f"  did you mean --micro-batch-size or --per-device-eval-batch-size?\n{OPTIONS}",
    ),
    "unknown option that is like nothing": (
        (*ESTIMATE, "--zzzz"),
        f"error: memplan estimate has no option --zzzz\n{OPTIONS}",
    ),
    "unknown command": (
        ("estimat",),
        "error: no such command 'estimat'. Did you mean 'estimate'?\n  `memplan --help` lists the options\n",
    ),
    "a value after a switch": (
        (*ESTIMATE, "--padding", "maybe"),
        "error: --padding is a switch and takes no value, not 'maybe'\n"
        "  say --padding or --no-padding, or leave it out\n",
    ),
    "a value of a switch": (
        (*ESTIMATE, "--no-packing=1"),
        "error: --no-packing is a switch and takes no value, not '1'\n"
        "  say --packing or --no-packing, or leave it out\n",
    ),
    "layers that are not there": (
        (*LORA, "--peft", '{"target_modules": ["q_proj"], "layers_to_transform": [40, 41]}'),
        "error: peft.layers_to_transform = [40, 41] is not allowed: the target modules are in layers 0 to 31\n",
    ),
    "unknown precision": (
        (*ESTIMATE, "--precision", "half"),
        "error: unknown precision 'half'\n  allowed: amp, fp32, master, master-fp32-grads, pure\n",
    ),
    "rank larger than the layer": (
        (*LORA, "--lora-r", "8192"),
        "error: peft.r = 8192 is not allowed: at most 4096 for model.layers.0.self_attn.q_proj, which is 4096 x 4096\n",
    ),
    "targets that match nothing": (
        (*LORA, "--target-modules", "foo_proj"),
        "error: peft.target_modules = ['foo_proj'] is not allowed: no module of this mistral model matches\n"
        "  did you mean o_proj, v_proj?\n"
        "  its modules: embed_tokens, input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm, "
        "gate_proj, up_proj, down_proj, norm, lm_head\n",
    ),
    "no targets": (
        (*LORA, "--target-modules", ","),
        "error: target_modules = ',' is not allowed: at least one name\n",
    ),
    "negative size": (
        (*ESTIMATE, "--micro-batch-size", "-1"),
        "error: micro_batch_size = -1 is not allowed: input should be greater than or equal to 1\n",
    ),
    "zero size": (
        (*ESTIMATE, "--sequence-length", "0"),
        "error: sequence_length = 0 is not allowed: input should be greater than or equal to 1\n",
    ),
    "huge size": (
        (*ESTIMATE, "--sequence-length", "99999999999999999999"),
        "error: sequence_length = 99999999999999999999 is not allowed: "
        "input should be less than or equal to 16777216\n",
    ),
    "a size that is no integer": (
        (*ESTIMATE, "--micro-batch-size", "1.5"),
        "error: micro_batch_size = '1.5' is not allowed: a whole number\n",
    ),
    "a size that is no number": (
        (*ESTIMATE, "--gpus", "two"),
        "error: gpus = 'two' is not allowed: a whole number\n",
    ),
    "a kind of checkpointing that is none": (
        (*ESTIMATE, "--activation-checkpointing=sometimes"),
        "error: activation_checkpointing = 'sometimes' is not allowed: true, false, reentrant or non-reentrant\n",
    ),
    "broken JSON in an option": (
        (*ESTIMATE, "--peft", '{"r": 8'),
        "error: --peft is not valid JSON: line 1 column 8: Expecting ',' delimiter\n",
    ),
    "a list where an object belongs": (
        (*ESTIMATE, "--peft", "[1]"),
        "error: peft = '[1]' is not allowed: a JSON object, or the path of a file that holds one\n",
    ),
    "a missing adapter config": (
        (*ESTIMATE, "--peft", "nosuch.json"),
        "error: --peft: no such file: nosuch.json\n  give the path of a JSON file, or the JSON object itself\n",
    ),
    "unknown adapter key": (
        (*LORA, "--peft", '{"rank": 8}'),
        "error: unknown key of LoraConfig 'rank'\n  did you mean rank_pattern?\n",
    ),
    "no model": (
        ("estimate",),
        "error: no model is named\n"
        "  for example: --model mistralai/Mistral-7B-v0.1, or a recipe file; `memplan models` lists the cards\n",
    ),
    "a model where a recipe file belongs": (
        ("estimate", "mistralai/Mistral-7B-v0.1"),
        "error: mistralai/Mistral-7B-v0.1 is a model, and no recipe file\n"
        "  name it with an option: --model mistralai/Mistral-7B-v0.1\n",
    ),
    "missing recipe file": (("estimate", "nosuch.yaml"), "error: no such file: nosuch.yaml\n"),
    "two recipe files": (
        ("estimate", "a.yaml", "b.yaml"),
        f"error: got unexpected extra argument(s) (b.yaml)\n{OPTIONS}",
    ),
    "settings that exclude each other": (
        (*ESTIMATE, "--load-in-4bit", "--load-in-8bit"),
        "error: load_in_4bit and load_in_8bit exclude each other\n",
    ),
    "two formats": (
        (*ESTIMATE, "--json", "--markdown"),
        "error: --json and --markdown exclude each other\n",
    ),
    "unknown --fail-on": (
        (*ESTIMATE, "--fail-on", "uncertein"),
        "error: unknown --fail-on 'uncertein'\n  did you mean uncertain?\n  allowed: uncertain, unsupported\n",
    ),
    "unknown component": (
        ("explain", *MISTRAL, "--component", "gradient"),
        "error: unknown component 'gradient'\n  did you mean gradients?\n"
        "  allowed: activations, adapters, allocator_cache, buffers, cuda_context, gradients, kv_cache, "
        "logits_and_loss, master_weights, optimizer_states, quantization_state, temporaries, weights\n",
    ),
    "negative --top": (
        ("explain", *MISTRAL, "--top", "-1"),
        "error: top = -1 is not allowed: 0 for all lines, or how many\n",
    ),
    "classic accounting of another method": (
        ("explain", "--classic", "--model", "gpt2", "--method", "ia3"),
        "error: the classic accounting knows full, lora, qlora, not ia3\n  leave out --classic for the others\n",
    ),
    "no such card": (("models", "zzzz"), "error: unknown model 'zzzz'\n  `memplan models` lists all 130\n"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input(run: Run, name: str) -> None:
    arguments, message = CASES[name]
    done = run(*arguments)
    assert done.err == message
    assert (done.code, done.out) == (2, "")


FILES = {
    "run.json": (
        '{"model": "gpt2",\n',
        "error: {path} is not valid JSON: line 2 column 1: Expecting property name enclosed in double quotes\n",
    ),
    "twice.json": (
        '{"model": "gpt2", "model": "gpt2"}',
        "error: {path}: the key 'model' stands twice in one object\n",
    ),
    "list.json": ("[1]", "error: {path} holds a list, not a mapping of recipe keys\n"),
    "run.toml": ("model = \n", "error: {path} is not valid TOML: Invalid value (at line 1, column 9)\n"),
    "run.ini": ("", "error: {path}: unknown ending '.ini'\n  allowed: .json, .toml, .yaml, .yml\n"),
    "key.yaml": (
        "model: gpt2\nbacth: 3\n",
        "error: unknown recipe key 'bacth'\n  did you mean micro_batch_size or per_device_eval_batch_size?\n",
    ),
    "text.yaml": (
        "model: gpt2\nmicro_batch_size: '3'\n",
        "error: micro_batch_size = '3' is not allowed: input should be a valid integer\n",
    ),
}


@pytest.mark.parametrize("name", list(FILES))
def test_bad_recipe_file(run: Run, tmp_path: Path, name: str) -> None:
    text, message = FILES[name]
    file = tmp_path / name
    file.write_text(text)
    done = run("estimate", str(file))
    assert done.err == message.format(path=file)
    assert (done.code, done.out) == (2, "")


def test_broken_yaml_names_the_place(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: [a")
    done = run("estimate", str(file))
    assert done.code == 2
    assert done.err.startswith(f"error: {file} is not valid YAML: ")
    assert "line 1, column 8" in done.err


def test_unsupported_is_exit_code_3(run: Run) -> None:
    done = run(*LORA, "--optim", "q_galore_adamw_8bit")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: optimizer 'q_galore_adamw_8bit' is not supported: ")


def test_an_unknown_source_of_records(run: Run) -> None:
    done = run("accuracy", "--source", "nosuch")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: unknown source 'nosuch'\n  allowed: ")


@pytest.mark.parametrize("name", list(CASES))
def test_a_message_is_one_screen(name: str) -> None:
    _, message = CASES[name]
    lines = [line[start : start + 80] for line in message.splitlines() for start in range(0, len(line), 80)]
    assert len(lines) <= 24
