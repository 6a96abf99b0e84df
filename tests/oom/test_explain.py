"""From a traceback and a recipe to the tensor and the change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.estimate import Component, Fits, Phase
from memplan.oom import explain
from memplan.oom.frames import place_of
from memplan.oom.message import printed
from memplan.recipe import Recipe
from memplan.step.allocator import segment_size_bytes
from tests.cli.conftest import Run, run  # noqa: F401 (a fixture)

RECIPE = Recipe(
    model="meta-llama/Llama-3.2-3B", method="lora", micro_batch_size=4, sequence_length=2048, gpu="rtx-4090"
)
LOGITS_BYTES = 4 * 2048 * 128256 * 4

LOSS = """Traceback (most recent call last):
  File "/home/a/train.py", line 88, in <module>
    trainer.train()
  File "/v/lib/python3.11/site-packages/transformers/trainer.py", line 3711, in compute_loss
    outputs = model(**inputs)
  File "/v/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1751, in _call_impl
    return forward_call(*args, **kwargs)
  File "/v/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py", line 702, in forward
    loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
  File "/v/lib/python3.11/site-packages/transformers/loss/loss_utils.py", line 49, in ForCausalLMLoss
    logits = logits.float()
"""
BACKWARD = """Traceback (most recent call last):
  File "/v/site-packages/accelerate/accelerator.py", line 2473, in backward
    loss.backward(**kwargs)
  File "/v/site-packages/torch/_tensor.py", line 647, in backward
    torch.autograd.backward(
  File "/v/site-packages/torch/autograd/__init__.py", line 354, in backward
    _engine_run_backward(
"""
RECOMPUTED = (
    BACKWARD
    + """  File "/v/site-packages/torch/utils/checkpoint.py", line 1129, in unpack_hook
    frame.recompute_fn(*args)
  File "/v/site-packages/transformers/models/llama/modeling_llama.py", line 151, in forward
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
"""
)
STEP = """Traceback (most recent call last):
  File "/v/site-packages/torch/optim/adamw.py", line 243, in step
    adamw(
  File "/v/site-packages/torch/optim/adam.py", line 781, in _multi_tensor_adam
    exp_avg_sq_sqrt = torch._foreach_sqrt(device_exp_avg_sqs)
"""
LOAD = """Traceback (most recent call last):
  File "/v/site-packages/transformers/modeling_utils.py", line 4179, in from_pretrained
    model = cls._load_pretrained_model(
  File "/v/site-packages/transformers/modeling_utils.py", line 5149, in caching_allocator_warmup
    torch.empty(int(byte_count // 2), dtype=torch.float16, device=device)
"""


def oom(traceback: str, size_bytes: int, *, unused: str = "300.00 MiB") -> str:
    asked = printed(segment_size_bytes(size_bytes))
    return (
        f"{traceback}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of "
        "23.52 GiB of which 500.00 MiB is free. Including non-PyTorch memory, this process has 23.00 GiB memory in use. "
        f"Of the allocated memory 22.00 GiB is allocated by PyTorch, and {unused} is reserved by PyTorch but unallocated."
    )


@pytest.mark.parametrize(
    ("traceback", "phase", "part", "recomputed"),
    [
        (LOSS, "forward", "logits_and_loss", False),
        (BACKWARD, "backward", "", False),
        (RECOMPUTED, "backward", "mlp", True),
        (STEP, "optimizer_step", "", False),
        (LOAD, "load", "", False),
        ("", "", "", False),
    ],
)
def test_the_place_of_a_traceback(traceback: str, phase: str, part: str, recomputed: bool) -> None:
    found = place_of(oom(traceback, LOGITS_BYTES))
    assert (found.phase, found.part, found.recomputed) == (phase, part, recomputed)


def test_the_float32_logits_are_named() -> None:
    found = explain(oom(LOSS, LOGITS_BYTES), RECIPE)
    first = found.candidates[0]
    assert (first.component, first.phase) == (Component.LOGITS_AND_LOSS, Phase.FORWARD)
    assert first.size_bytes == LOGITS_BYTES
    assert first.numbers == "4·2048·128256 × 4"
    assert all(entry.score <= first.score for entry in found.candidates)


def test_the_phase_orders_tensors_of_one_size() -> None:
    """Logits in float32 are made in forward, and their gradient in backward."""
    assert explain(oom(LOSS, LOGITS_BYTES), RECIPE).candidates[0].phase == Phase.FORWARD
    assert explain(oom(BACKWARD, LOGITS_BYTES), RECIPE).candidates[0].phase == Phase.BACKWARD


def test_an_mlp_activation_in_a_recomputed_layer() -> None:
    recipe = RECIPE.replace(activation_checkpointing=True)
    found = explain(oom(RECOMPUTED, 4 * 2048 * 8192 * 2), recipe)
    assert "mlp" in found.candidates[0].module
    assert "*" in found.candidates[0].module


def test_the_change_is_the_planners_and_fits() -> None:
    found = explain(oom(LOSS, LOGITS_BYTES), RECIPE)
    assert found.remedies
    for remedy in found.remedies:
        assert remedy.sets
        assert remedy.fits is Fits.FITS
    import memplan

    changed = memplan.estimate(RECIPE, **found.remedies[0].sets)
    assert changed.peak.device_bytes == found.remedies[0].device_bytes
    assert changed.verdict().fits is Fits.FITS


def test_fragmentation_proposes_the_allocators_other_mode_first() -> None:
    found = explain(oom(LOSS, LOGITS_BYTES, unused="9.00 GiB"))
    assert found.diagnosis.cause == "fragmentation"
    assert found.remedies[0].sets == {"expandable_segments": True}


def test_the_card_is_known_by_its_capacity() -> None:
    assert explain(oom(LOSS, LOGITS_BYTES)).gpu == "rtx-4090"


def test_a_size_that_the_recipe_does_not_have() -> None:
    found = explain(oom(LOSS, LOGITS_BYTES + 100 * 2**20), RECIPE)
    assert not found.candidates
    assert any("no tensor of this recipe" in note for note in found.notes)


def test_a_small_request_names_nothing() -> None:
    found = explain(oom(LOSS, 2**20), RECIPE)
    assert not found.candidates
    assert any("last straw" in note for note in found.notes)


def test_more_alive_than_the_recipe_explains() -> None:
    small = RECIPE.replace(sequence_length=128, micro_batch_size=1)
    notes = explain(oom(LOSS, LOGITS_BYTES), small).notes
    assert any("more than the recipe's peak" in note for note in notes)
    assert any("by the estimate this recipe fits" in note for note in notes)


def test_a_step_that_is_not_covered_says_so() -> None:
    found = explain(oom(LOSS, LOGITS_BYTES), RECIPE.replace(stack="unsloth", packing=False))
    assert not found.candidates
    assert any("not covered" in note for note in found.notes)


def test_the_command(run: Run, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "log.txt"
    log.write_text(oom(LOSS, LOGITS_BYTES), encoding="utf-8")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    done = run("explain-oom", str(log), "--recipe", str(recipe), "--json")
    answer = json.loads(done.out)
    assert done.code == 0
    assert answer["candidates"][0]["bytes"] == LOGITS_BYTES
    assert answer["remedies"][0]["fits"] == "fits"
    text = run("explain-oom", str(log), "--model", "meta-llama/Llama-3.2-3B", "--method", "lora",
               "--micro-batch-size", "4", "--sequence-length", "2048")  # fmt: skip
    assert text.code == 0
    assert text.out.startswith("Too little memory: 3.91 GiB could not be had")
    assert "loss_utils.py:49" in text.out


def test_the_command_refuses_other_files(run: Run, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "log.txt"
    log.write_text("step 1: loss 2.5", encoding="utf-8")
    assert run("explain-oom", str(log)).code == 2
    missing = run("explain-oom", str(tmp_path / "nothing"))
    assert (missing.code, "No such file" in missing.err) == (2, True)
