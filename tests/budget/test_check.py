"""`memplan check` in a repository with a real history: output and exit code of each outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memplan
from memplan.budget.result import CheckReport
from tests.budget.conftest import BUDGETS, Repository, Run


def peak_gib(batch: int, length: int = 512) -> str:
    """The expected device peak of the repository's recipe, as reports write it."""
    answer = memplan.estimate(
        model="HuggingFaceTB/SmolLM2-135M",
        method="full",
        dtype="bfloat16",
        micro_batch_size=batch,
        sequence_length=length,
        gpu="rtx-4090",
    )
    return f"{answer.peak.device_bytes / 2**30:,.2f} GiB"


def test_pass(repository: Repository, run: Run) -> None:
    outcome = run("check")
    assert outcome.code == 0
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0] == "Pass: 2 checks within their limits"
    assert lines[2].split() == ["check", "verdict", "peak", "at", "most", "limit", "room"]
    assert lines[3].startswith("sft         within")
    assert peak_gib(4) in lines[3]
    assert lines[4].startswith("classifier  within")
    assert lines[6:] == ["Notes", "- max_increase is not judged: no base is given (--base)"]


def test_the_same_from_a_folder_below(repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    at_top = run("check", "--json").out
    monkeypatch.chdir(repository.folder / "configs")
    below = run("check", "--json").out
    assert below.replace("../memplan.toml", "memplan.toml") == at_top


def test_over(repository: Repository, run: Run) -> None:
    repository.write("memplan.toml", BUDGETS.format(budget="6 GiB"))
    repository.sft(batch=16)
    outcome = run("check")
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert lines[0] == "Over budget: 1 of 2 checks over"
    text = outcome.out
    assert "because        over the budget: " in text
    assert "6.0 GiB allowed" in text
    assert 'the limit is budget = "6 GiB" in memplan.toml:6' in text
    assert "least painful  " in text
    assert "message        Ask @infra before raising this." in text
    assert run("check", "--exit-zero").code == 0


def test_the_suggested_change_is_within(repository: Repository, run: Run) -> None:
    repository.write("memplan.toml", BUDGETS.format(budget="6 GiB"))
    repository.sft(batch=16)
    found = json.loads(run("check", "--json").out)["checks"][0]["suggestion"]
    recipe = memplan.Recipe.from_file("configs/sft.yaml").replace(**found["sets"])
    peak = memplan.estimate(recipe).peak.device_bytes
    assert peak == found["expected_bytes"]
    assert peak <= found["upper_bytes"] <= 6 * 2**30
    assert json.loads(run("check", "--json", "--no-suggest").out)["checks"][0]["suggestion"] is None


def test_growth_over_the_base(repository: Repository, run: Run) -> None:
    base = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "--quiet", "-b", "longer")
    repository.sft(batch=4, length=1024)
    outcome = run("check", "--base", "main", "--json")
    assert outcome.code == 1
    report = CheckReport.model_validate_json(outcome.out)
    assert report.verdict == "over"
    assert report.base is not None
    assert (report.base.ref, report.base.commit) == ("main", base)
    sft, classifier = report.checks
    assert sft.status == "grew"
    growth = sft.growth
    assert growth.before_bytes is not None
    assert growth.change_bytes is not None
    assert growth.limit_bytes == growth.before_bytes // 10
    assert growth.change_bytes > growth.limit_bytes
    assert growth.why is not None
    assert [change.key for change in growth.why.changed] == ["sequence_length"]
    assert sum(part.change_bytes for part in growth.why.components) == growth.change_bytes
    assert classifier.growth.change_bytes == 0
    text = run("check", "--base", "main").out
    assert text.splitlines()[0] == "Over budget: 1 of 2 checks grew too much"
    assert f"- sequence_length 512 → 1024: +{growth.change_bytes / 2**30:.2f} GiB" in text
    assert 'the limit is max_increase = "10%" in memplan.toml:8' in text
    repository.commit("longer")
    assert run("check", "--base", "auto").code == 1  # merge base with main
    assert run("check", "--base", base).code == 1
    assert run("check", "--base", "HEAD").code == 0  # nothing changed since


def test_the_base_is_read_as_it_was(repository: Repository, run: Run) -> None:
    """Neither a renamed file nor a budget file that moved its recipes confuses the base; the working tree is left alone."""
    repository.git("mv", "configs/sft.yaml", "configs/moved.yaml")
    repository.write("memplan.toml", BUDGETS.format(budget="12 GiB").replace("configs/sft.yaml", "configs/moved.yaml"))
    before = repository.git("status", "--porcelain")
    report = CheckReport.model_validate_json(run("check", "--base", "main", "--json").out)
    assert report.checks[0].growth.base == "compared"
    assert report.checks[0].growth.change_bytes == 0
    assert repository.git("status", "--porcelain") == before


def test_new_checks_and_a_new_budget_file(repository: Repository, run: Run) -> None:
    text = BUDGETS.format(budget="12 GiB").replace('name = "sft"', 'name = "sft-2"')
    repository.write("memplan.toml", text)
    outcome = run("check", "--base", "main")
    assert outcome.code == 0
    assert outcome.out.splitlines()[3].endswith("  new")
    (repository.folder / "memplan.toml").unlink()
    repository.commit("without budgets")
    repository.write("memplan.toml", text)
    outcome = run("check", "--base", "main", "--json")
    assert outcome.code == 0
    growth = json.loads(outcome.out)["checks"][0]["growth"]
    assert (growth["base"], growth["note"], growth["status"]) == ("new", "memplan.toml is not in main", None)


def test_a_base_that_cannot_be_estimated_is_uncertain(repository: Repository, run: Run) -> None:
    repository.write("configs/sft.yaml", "model: no/such-model\n")
    repository.commit("broken")
    repository.sft(batch=4)
    outcome = run("check", "--base", "main", "--on-uncertain", "fail")
    assert outcome.code == 3
    assert "growth is not known: unknown model 'no/such-model'" in outcome.out


def test_uncertain(repository: Repository, run: Run) -> None:
    text = BUDGETS.format(budget="12 GiB").replace("12 GiB", "5 GiB").replace('"5%"', '"10 GiB"')
    repository.write("memplan.toml", text)
    outcome = run("check")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "Pass: 1 of 2 checks with a warning"
    assert "uncertain (warning)" in outcome.out
    assert run("check", "--on-uncertain", "pass").out.splitlines()[0] == "Pass: 2 checks within their limits"
    failing = run("check", "--on-uncertain", "fail")
    assert failing.code == 3
    assert failing.out.splitlines()[0] == "Uncertain: 1 of 2 checks uncertain"
    repository.write("memplan.toml", text + 'on_uncertain = "fail"\n')
    assert run("check").code == 0  # of the other check
    repository.write("memplan.toml", text.replace("headroom", 'on_uncertain = "fail"\nheadroom'))
    assert run("check").code == 3
    assert run("check", "--exit-zero").code == 0


def test_not_covered_is_never_within(repository: Repository, run: Run) -> None:
    repository.write("configs/sft.yaml", (repository.folder / "configs/sft.yaml").read_text() + "stack: unsloth\n")
    outcome = run("check", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)["checks"][0]
    assert (found["status"], found["outcome"]) == ("uncertain", "warn")
    assert any("unsloth" in text for text in found["unsupported"])
    assert [limit["status"] for limit in found["limits"]] == ["uncertain", "uncertain"]
    assert run("check", "--on-uncertain", "fail").code == 3
    assert "≥ " in run("check").out


def test_severity_warn_never_fails(repository: Repository, run: Run) -> None:
    text = BUDGETS.format(budget="2 GiB").replace("headroom", 'severity = "warn"\nheadroom')
    repository.write("memplan.toml", text)
    outcome = run("check", "--no-suggest")
    assert outcome.code == 0
    assert "over (warning)" in outcome.out


def test_bad_config(repository: Repository, run: Run) -> None:
    repository.write("memplan.toml", BUDGETS.format(budget="12"))
    outcome = run("check", "--exit-zero")
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err == (
        "error: memplan.toml:6: budget = '12' is not allowed: a size with a unit: B, KiB, MiB, GiB, TiB, MB or GB\n"
        '  it could mean "12 GiB" (12,884,901,888 bytes) or "12 GB" (12,000,000,000 bytes)\n'
    )


def test_bad_recipe_stops_no_other_check(repository: Repository, run: Run) -> None:
    repository.write("configs/sft.yaml", "model: openai-community/gpt2\nbacth: 4\n")
    outcome = run("check")
    assert outcome.code == 2
    assert outcome.out.splitlines()[0] == "Error: 1 of 2 checks could not be judged"
    assert "unknown recipe key 'bacth'" in outcome.out
    assert "did you mean" in outcome.out
    assert "classifier  within" in outcome.out


def test_missing_file(repository: Repository, run: Run) -> None:
    (repository.folder / "configs/sft.yaml").unlink()
    outcome = run("check")
    assert outcome.code == 4
    assert "problem    memplan.toml:3: no such file: configs/sft.yaml" in outcome.out
    assert "classifier  within" in outcome.out
    assert run("check", "--exit-zero").code == 4
    missing = run("check", "memplan2/memplan.toml")
    assert missing.code == 4
    assert missing.err.startswith("error: no such file: memplan2/memplan.toml\n")


def test_unknown_ref_and_no_repository(repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run("check", "--base", "origin/nowhere")
    assert outcome.code == 4
    assert "the git ref 'origin/nowhere' is not in this clone" in outcome.err
    assert "fetch-depth: 0" in outcome.err
    assert run("check", "--base", "--upload-pack=x").code == 2
    assert run("check", "--base", "a b").code == 2
    monkeypatch.setenv("GITHUB_BASE_REF", "gone")
    assert run("check", "--base", "auto").code == 4
    monkeypatch.setenv("GITHUB_BASE_REF", "main")
    assert run("check", "--base", "auto").code == 0
    outside = repository.folder.parent / "outside"
    outside.mkdir()
    (outside / "memplan.toml").write_text(BUDGETS.format(budget="12 GiB"))
    monkeypatch.chdir(outside)
    outcome = run("check", "--base", "main")
    assert outcome.code == 4
    assert "is in no git repository" in outcome.err


def test_several_outcomes(repository: Repository, run: Run) -> None:
    """What is broken comes first, wrong input before what is missing, over before uncertain."""
    over = BUDGETS.format(budget="2 GiB")
    repository.write("memplan.toml", over + '[[check]]\nname = "gone"\nconfig = "gone.yaml"\ngpu = "t4"\n')
    assert run("check", "--no-suggest").code == 4
    repository.write("memplan.toml", over + '[[check]]\nname = "typo"\nrecipe = { modle = "x" }\ngpu = "t4"\n')
    assert run("check", "--no-suggest").code == 2
    tight = 'recipe = { model = "openai-community/gpt2", stack = "unsloth" }\ngpu = "t4"\non_uncertain = "fail"\n'
    repository.write("memplan.toml", over + f'[[check]]\nname = "unsure"\n{tight}')
    assert run("check", "--no-suggest").code == 1


def test_a_check_needs_a_limit(repository: Repository, run: Run) -> None:
    repository.write(
        "memplan.toml", 'schema = 1\n[[check]]\nname = "a"\nrecipe = { model = "openai-community/gpt2" }\n'
    )
    outcome = run("check")
    assert outcome.code == 2
    assert "memplan.toml:2: the check 'a' has no limit" in outcome.out


def test_pyproject(repository: Repository, run: Run) -> None:
    text = BUDGETS.format(budget="2 GiB").replace("[[check]]", "[[tool.memplan.check]]")
    repository.write(
        "pyproject.toml", '[project]\nname = "mine"\n\n' + text.replace("schema", "[tool.memplan]\nschema")
    )
    outcome = run("check")
    assert outcome.code == 2
    assert "has budgets in memplan.toml and in [tool.memplan]" in outcome.err
    named = run("check", "pyproject.toml", "--no-suggest")
    assert named.code == 1
    assert 'budget = "2 GiB" in pyproject.toml:10' in named.out
    (repository.folder / "memplan.toml").unlink()
    assert run("check", "--no-suggest").code == 1


def test_files_without_a_budget_file(repository: Repository, run: Run) -> None:
    first = run("check", "configs/sft.yaml")
    assert first.code == 0
    assert "not judged" not in first.out  # its own GPU judges it
    repository.write("gpt2.json", '{"model": "openai-community/gpt2"}')
    free = run("check", "gpt2.json")
    assert free.code == 0
    assert free.out.splitlines()[0] == "Peaks: 1 run, nothing to judge by"
    assert "--budget" in free.out
    assert run("check", "gpt2.json", "--budget", "100 MiB", "--no-suggest").code == 1
    assert run("check", "gpt2.json", "--gpu", "h100").code == 0
    assert run("check", "gpt2.json", "--budget", "100").code == 2
    assert run("check", "none.yaml").code == 4
    assert run("check", "memplan.toml", "gpt2.json").code == 2
    assert run("check", "--budget", "2 GiB").code == 2
    grown = run("check", "configs/sft.yaml", "--base", "main", "--max-increase", "0 B")
    assert grown.code == 0
    repository.sft(batch=5)
    assert run("check", "configs/sft.yaml", "--base", "main", "--max-increase", "0 B").code == 1


def test_any_training_config_with_overrides(repository: Repository, run: Run) -> None:
    """A config of another framework, read with the base's config.json as it was."""
    model = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 999,
    }
    repository.write("model/config.json", json.dumps(model))
    repository.write("args.json", json.dumps({"per_device_train_batch_size": 2, "bf16": True, "output_dir": "x"}))
    budgets = (
        'schema = 1\n[[check]]\nname = "own"\nconfig = "args.json"\ngpu = "t4"\nmax_increase = "0 B"\n'
        'override = { model = "model", sequence_length = 64, attn_implementation = "sdpa" }\n'
    )
    repository.write("memplan.toml", budgets)
    repository.commit("own")
    repository.write("model/config.json", json.dumps({**model, "num_hidden_layers": 5}))
    outcome = run("check", "--base", "main", "--json")
    found = json.loads(outcome.out)["checks"][0]
    assert found["model"] == "model"
    assert outcome.code == 1
    assert found["growth"]["after_bytes"] > found["growth"]["before_bytes"]
    why = found["growth"]["why"]
    assert why["changed"] == [{"key": "model", "before": "model as it was", "after": "model as it is"}]
    assert why["change_bytes"] > 0


def test_json_is_the_api(repository: Repository, run: Run) -> None:
    outcome = run("check", "--base", "main", "--json")
    report = memplan.check("memplan.toml", base="main")
    assert CheckReport.model_validate_json(outcome.out) == report
    assert outcome.out == report.to_json() + "\n" == run("check", "--base", "main", "--format", "json").out
    assert report.schema_version == 1
    assert report.passed
    assert run("check", "--base", "main").out == report.to_text()
    with pytest.raises(memplan.InputError, match="unknown on_uncertain"):
        memplan.check(on_uncertain="explode")


def test_schema_and_usage(repository: Repository, run: Run) -> None:
    assert json.loads(run("check", "--schema").out)["title"] == "memplan budgets"
    assert run("check", "--format", "html").code == 2
    assert run("check", "--json", "--format", "junit").code == 2
    text = run("check", "--help").out
    assert "Exit code 0" in text
    assert "--exit-zero" in text
    (repository.folder / "memplan.toml").unlink()
    outcome = run("check")
    assert outcome.code == 2
    assert "[[check]]" in outcome.err


def test_two_runs_are_equal_to_the_byte(repository: Repository, run: Run, tmp_path: Path) -> None:
    repository.sft(batch=8, length=700)
    for form in ("text", "json", "markdown", "github", "junit"):
        first = run("check", "--base", "main", "--format", form)
        assert first.out == run("check", "--base", "main", "--format", form).out
        assert str(tmp_path) not in first.out
