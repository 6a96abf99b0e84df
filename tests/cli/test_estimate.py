"""`memplan estimate`: the main job, JSON alone on stdout, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import memplan
from memplan.cli.estimate import FailOn, exit_code
from memplan.estimate import Estimate, Fits
from tests.cli.conftest import MISTRAL, Run

QLORA = (*MISTRAL, "--method", "qlora", "--gpu", "rtx-4090")
SENTENCE = re.compile(
    r"(Fits|Uncertain) on RTX 4090 24GB: [\d.]+ GiB expected, at most [\d.]+ GiB of 23\.5 GiB usable"
    r"|Does not fit on RTX 4090 24GB: [\d.]+ GiB expected, 23\.5 GiB usable, [\d.]+ [GM]iB too much"
)


@pytest.mark.parametrize("sequence", [512, 2048, 4096])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_the_main_job(run: Run, batch: int, sequence: int) -> None:
    done = run("estimate", *QLORA, "--micro-batch-size", str(batch), "--sequence-length", str(sequence))
    first, rest = done.out.split("\n", 1)
    assert SENTENCE.fullmatch(first), first
    assert done.code == (1 if first.startswith("Does not fit") else 0)
    assert f"{batch} × {sequence} tokens" in rest
    assert re.search(r"^peak +step [12], (forward|backward|optimizer step): \w+", rest, re.M)
    assert done.err == ""


def test_the_report_has_every_part(run: Run) -> None:
    out = run("estimate", *QLORA).out
    for part in (
        "7,262,703,616, of which 20,971,520 trained (0.2888 %)",
        "16 bytes: weights 4, gradients 4, optimizer 8",
        "analytic: the step walked op by op",
        "At the peak\n",
        "\nallocated ",
        "\nreserved ",
        "\ndevice ",
        "Phases, live bytes\n",
        "Assumptions\n",
        "--defaults lists them",
    ):
        assert part in out


def test_levels_and_components_add_up_in_the_report(run: Run) -> None:
    answer = json.loads(run("estimate", *QLORA, "--json").out)
    peak = answer["peak"]
    assert sum(entry["bytes"] for entry in answer["components"]) == peak["live_bytes"]
    assert peak["live_bytes"] <= peak["allocated_bytes"] <= peak["reserved_bytes"] < peak["device_bytes"]
    assert answer["verdict"]["expected_bytes"] == peak["device_bytes"]


def test_json_is_alone_and_is_what_python_gives(run: Run) -> None:
    done = run("estimate", *QLORA, "--json")
    assert done.err == ""
    expected = memplan.estimate(model="mistralai/Mistral-7B-v0.1", method="qlora", gpu="rtx-4090")
    assert done.out == expected.to_json() + "\n"
    assert list(json.loads(done.out)) == [
        "schema_version",
        "recipe",
        "recipe_sources",
        "parameters",
        "bytes_per_parameter",
        "peak",
        "components",
        "timeline",
        "host_bytes",
        "verdict",
        "assumptions",
        "unsupported",
        "provenance",
        "versions",
    ]


def test_nothing_but_text_in_a_pipe(run: Run) -> None:
    out = run("estimate", *QLORA).out
    assert not re.search("[\x1b─-╿█▓░■✓✗]", out)


def test_defaults_come_with_their_sources(run: Run) -> None:
    out = run("estimate", *QLORA, "--defaults").out
    assert re.search(r"^method +qlora +you$", out, re.M)
    assert re.search(r"^bnb_4bit_quant_type +nf4 +QLoRA, arXiv 2305.14314$", out, re.M)


def test_markdown(run: Run) -> None:
    out = run("estimate", *QLORA, "--markdown").out
    assert out.startswith("**Fits** on RTX 4090 24GB: ")
    assert "| component | bytes | share |\n|---|--:|--:|\n" in out


def test_a_recipe_file_and_options_over_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "mistralai/Mistral-7B-v0.1"\nmethod = "qlora"\ngpu = "rtx-4090"\nmicro_batch_size = 4\n')
    assert json.loads(run("estimate", str(file), "--json").out)["recipe"]["micro_batch_size"] == 4
    over = json.loads(run("estimate", str(file), "--micro-batch-size", "2", "--json").out)
    assert over["recipe"]["micro_batch_size"] == 2
    assert over["recipe"]["method"] == "qlora"


def test_adapter_config_by_path(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text('{"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}')
    answer = json.loads(run("estimate", *MISTRAL, "--peft", str(file), "--json").out)
    # 32 layers × 16 × (4096 + 4096 of q, 4096 + 1024 of v)
    assert answer["parameters"]["trainable"] == 32 * 16 * (8192 + 5120)


def test_checkpointing_as_a_flag(run: Run) -> None:
    lora = ("estimate", *MISTRAL, "--method", "lora", "--json")
    assert json.loads(run(*lora, "--activation-checkpointing").out)["recipe"]["activation_checkpointing"] is True
    assert json.loads(run(*lora, "--no-gradient-checkpointing").out)["recipe"]["activation_checkpointing"] is False


def test_exit_code_0_without_a_gpu(run: Run) -> None:
    done = run("estimate", *MISTRAL, "--method", "lora")
    assert done.code == 0
    assert re.match(r"Needs [\d.]+ GiB on the device at its peak; no GPU is named\n", done.out)


def test_exit_code_1_when_it_does_not_fit(run: Run) -> None:
    done = run("estimate", *MISTRAL, "--gpu", "rtx-4090")
    assert done.code == 1
    assert done.out.startswith("Does not fit on RTX 4090 24GB: ")
    assert done.err == ""


def test_exit_code_3_only_where_asked(run: Run) -> None:
    unsupported = ("estimate", *QLORA, "--stack", "unsloth", "--no-packing")
    plain = run(*unsupported)
    assert plain.code == 0
    assert plain.out.startswith("Uncertain on RTX 4090 24GB: at least ")
    assert "Not covered, so this is no promise\n- under stack unsloth: padded batches" in plain.out
    assert run(*unsupported, "--fail-on", "uncertain").code == 3
    assert run(*unsupported, "--fail-on", "unsupported").code == 3


def test_does_not_fit_comes_before_uncertain(run: Run) -> None:
    assert run("estimate", *MISTRAL, "--gpu", "rtx-4090", "--stack", "unsloth", "--fail-on", "uncertain").code == 1


@pytest.mark.parametrize(
    ("fits", "fail_on", "code"),
    [
        (Fits.FITS, None, 0),
        (Fits.FITS, FailOn.UNCERTAIN, 0),
        (Fits.UNCERTAIN, None, 0),
        (Fits.UNCERTAIN, FailOn.UNCERTAIN, 3),
        (Fits.UNCERTAIN, FailOn.UNSUPPORTED, 0),
        (Fits.DOES_NOT_FIT, FailOn.UNSUPPORTED, 1),
    ],
)
def test_exit_codes(fits: Fits, fail_on: FailOn | None, code: int) -> None:
    answer = memplan.estimate(model="mistralai/Mistral-7B-v0.1", method="qlora", gpu="rtx-4090")
    assert answer.verdict_report is not None
    verdict = answer.verdict_report.model_copy(update={"fits": fits})
    judged: Estimate = answer.model_copy(update={"verdict_report": verdict})
    assert exit_code(judged, fail_on) == code
