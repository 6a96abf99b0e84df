"""Why two runs differ: components that sum, keys that sum, and what is left to the changes together."""

from __future__ import annotations

import json

import pytest

import memplan
from memplan.budget import diff
from memplan.budget.result import Difference
from memplan.errors import InputError, UnavailableError
from tests.budget.conftest import Repository, Run

GPT2 = {"model": "openai-community/gpt2", "micro_batch_size": 2, "sequence_length": 128, "gpu": "t4"}


def device(keys: dict[str, object]) -> int:
    return memplan.estimate(**keys).peak.device_bytes


def test_one_key() -> None:
    found = diff(GPT2, {**GPT2, "micro_batch_size": 4})
    change = device({**GPT2, "micro_batch_size": 4}) - device(GPT2)
    assert found.change_bytes == change > 0
    assert sum(part.change_bytes for part in found.components) == change
    assert [(one.changes[0].key, one.in_order_bytes, one.alone_bytes) for one in found.attributions] == [
        ("micro_batch_size", change, change)
    ]
    assert found.interaction_bytes == 0
    assert found.notes == ()


def test_several_keys_in_order_and_alone() -> None:
    after = {**GPT2, "micro_batch_size": 8, "sequence_length": 512, "optim": "adamw_8bit"}
    found = diff(GPT2, after)
    # In the order of the recipe's keys, not in that of the file.
    assert [one.changes[0].key for one in found.attributions] == ["optim", "micro_batch_size", "sequence_length"]
    at = [GPT2]
    for one in found.attributions:
        at.append({**at[-1], one.changes[0].key: one.changes[0].after})
        assert one.in_order_bytes == device(at[-1]) - device(at[-2])
        alone = {**GPT2, one.changes[0].key: one.changes[0].after}
        assert one.alone_bytes == device(alone) - device(GPT2)
    assert sum(one.in_order_bytes for one in found.attributions) == found.change_bytes
    assert found.interaction_bytes == found.change_bytes - sum(one.alone_bytes or 0 for one in found.attributions)
    assert found.interaction_bytes != 0


def test_keys_that_make_no_recipe_alone_go_together() -> None:
    before = {**GPT2, "method": "lora"}
    after = {**GPT2, "method": "prompt_tuning", "num_virtual_tokens": 8}
    broken = {**before, "num_virtual_tokens": 8}
    with pytest.raises(InputError):
        memplan.estimate(**broken)
    found = diff(before, after)
    assert sum(one.in_order_bytes for one in found.attributions) == found.change_bytes
    assert sum(len(one.changes) for one in found.attributions) == len(found.changed) == 2


def test_keys_in_objects_and_implied_values() -> None:
    before = {**GPT2, "method": "lora", "peft": {"r": 8, "target_modules": ["c_attn"]}}
    after = {**GPT2, "method": "lora", "peft": {"r": 64, "target_modules": ["c_attn"]}}
    found = diff(before, after)
    assert [(change.key, change.before, change.after) for change in found.changed] == [("peft.r", 8, 64)]
    adapters = next(part for part in found.components if part.component == "adapters")
    assert adapters.change_bytes > 0
    full = diff(before, GPT2)
    assert {change.key for change in full.implied} & {"precision", "dtype", "autocast_adapter_dtype"}


def test_equal_runs() -> None:
    found = diff(GPT2, dict(reversed(GPT2.items())))
    assert (found.change_bytes, found.changed, found.attributions, found.implied) == (0, (), (), ())


def test_what_is_not_covered_is_said() -> None:
    found = diff({**GPT2, "stack": "unsloth"}, {**GPT2, "stack": "unsloth", "micro_batch_size": 64})
    assert not found.before.is_covered
    assert any("lower bound" in note for note in found.notes)
    assert any("model states alone" in note for note in found.notes)
    mixed = diff(GPT2, {**GPT2, "stack": "unsloth"})
    assert mixed.attributions == ()
    assert any("not what the change does" in note for note in mixed.notes)


def test_command_over_files_and_refs(repository: Repository, run: Run) -> None:
    repository.sft(batch=8, length=1024)
    outcome = run("diff", "main:configs/sft.yaml", "configs/sft.yaml")
    assert outcome.code == 0
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Grew by ")
    assert "(main:configs/sft.yaml) to" in lines[0]
    assert lines[2] == "By recipe key, in this order"
    assert lines[3].startswith("- micro_batch_size 4 → 8: +")
    assert lines[4].startswith("- sequence_length 512 → 1024: +")
    assert "of the whole is from the changes together" in lines[5]
    assert lines[-1].startswith("device ")
    found = Difference.model_validate_json(run("diff", "main:configs/sft.yaml", "configs/sft.yaml", "--json").out)
    assert found == diff("main:configs/sft.yaml", "configs/sft.yaml")
    assert json.loads(found.to_json())["schema_version"] == 1
    back = run("diff", "configs/sft.yaml", "main:configs/sft.yaml")
    assert back.out.startswith("Shrank by ")
    markdown = run("diff", "main:configs/sft.yaml", "configs/sft.yaml", "--markdown").out
    assert markdown.startswith("### memplan: +")
    assert "| **device** |" in markdown
    assert run("diff", "configs/sft.yaml", "configs/sft.yaml").out.startswith("Same peak: ")


def test_refused(repository: Repository, run: Run) -> None:
    assert run("diff", "configs/sft.yaml").code == 2
    assert run("diff", "configs/sft.yaml", "none.yaml").code == 4
    assert run("diff", "nowhere:configs/sft.yaml", "configs/sft.yaml").code == 4
    assert run("diff", "main:none.yaml", "configs/sft.yaml").code == 4
    assert run("diff", "configs/sft.yaml", "configs/sft.yaml", "--json", "--markdown").code == 2
    with pytest.raises(UnavailableError):
        diff("main:none.yaml", GPT2)
