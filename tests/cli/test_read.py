"""`memplan read`, and configs of other frameworks where a recipe file may stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "interop" / "examples"
QLORA = str(EXAMPLES / "axolotl_qlora_1b.yaml")


def test_read_shows_what_became_of_every_key(run: Callable[..., Any]) -> None:
    done = run("read", QLORA)
    assert done.code == 0
    assert "as axolotl" in done.out
    assert "sequence_len" in done.out
    assert f"{QLORA}:19" in done.out
    assert "axolotl/loaders/model.py:808 (0.19.0)" in done.out
    assert "without any bearing on memory" in done.out


def test_read_as_json(run: Callable[..., Any]) -> None:
    done = run("read", QLORA, "--json")
    found = json.loads(done.out)
    assert found["format"] == "axolotl"
    assert found["recipe"]["sequence_length"] == 2048
    assert {entry["line"] for entry in found["used"] if entry["key"] == "sequence_len"} == {19}
    assert [text.rpartition("/")[2].partition(",")[0] for text in found["unsupported"]] == [
        "axolotl_qlora_1b.yaml:58: an evaluation before the first step"
    ]


def test_read_of_several_files(run: Callable[..., Any]) -> None:
    files = [str(EXAMPLES / name) for name in ("adapter_config.json", "bnb_nf4.json", "accelerate_fsdp2.yaml")]
    found = json.loads(run("read", *files, "--json").out)
    assert found["recipe"]["gpus"] == 8
    assert any("FSDP 2" in text for text in found["unsupported"])
    assert run("read", *files, "--format", "peft").code == 2


def test_every_command_takes_such_a_file(run: Callable[..., Any]) -> None:
    done = run("estimate", str(EXAMPLES / "llamafactory_lora_sft.yaml"), "--gpu", "h100-sxm-80gb", "--json")
    found = json.loads(done.out)
    assert found["recipe"]["model"] == "meta-llama/Meta-Llama-3-8B"
    assert found["recipe"]["activation_checkpointing"] == "reentrant"
    assert found["unsupported"] == []
    overridden = run("estimate", str(EXAMPLES / "llamafactory_lora_sft.yaml"), "--sequence-length", "64", "--json")
    assert json.loads(overridden.out)["recipe"]["sequence_length"] == 64


def test_what_no_key_can_say_is_never_a_fit(run: Callable[..., Any]) -> None:
    file = str(EXAMPLES / "llamafactory_full_ds3.yaml")
    done = run(
        "estimate", file, "--model", "meta-llama/Llama-3.2-1B", "--gpu", "b200", "--fail-on", "unsupported", "--json"
    )
    assert done.code == 3
    assert json.loads(done.out)["verdict"]["fits"] == "uncertain"


def test_errors_name_file_and_line(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("base_model: gpt2\nmicro_batch_size: many\n")
    done = run("estimate", str(path))
    assert done.code == 2
    assert done.err.startswith(f"error: {path}:2: micro_batch_size = 'many' is not allowed: a whole number")
    path.write_text("colour: blue\n")
    assert "none of the keys" in run("estimate", str(path)).err
    assert run("estimate", str(path), "--format", "axolotl", "--model", "gpt2").code == 0
