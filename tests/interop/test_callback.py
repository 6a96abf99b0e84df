"""The callback in a real Trainer on the CPU, and its report beside figures of torch.cuda."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.interop.callback import comparison, trainer_callback

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def train(tmp_path: Path, callback: Any, **keys: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES))
    rows = [{"input_ids": [1] * 8, "labels": [1] * 8}] * 8
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, max_steps=3, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_strategy="no", **keys,
    )  # fmt: skip
    transformers.Trainer(model, args, train_dataset=rows, callbacks=[callback]).train()


@pytest.mark.filterwarnings("ignore")
def test_on_a_cpu_there_is_nothing_to_compare(tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path, trainer_callback(sequence_length=8, write=said.append))
    assert len(said) == 1
    assert "memory after 2 steps" in said[0]
    assert "there is nothing to compare" in said[0]
    assert "training on the CPU" in said[0]


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_without_a_prediction(tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path, trainer_callback(memplan.Recipe(model="no/such-model"), steps=1, write=said.append))
    assert len(said) == 1
    assert said[0].startswith("memplan: no prediction: unknown model")


def test_prediction_beside_reality() -> None:
    estimate = memplan.estimate(model={"model_type": "llama", **SIZES}, sequence_length=8)
    peak = estimate.peak
    text = comparison(
        estimate,
        {"allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes * 2, "device": peak.device_bytes},
        2,
    )
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.startswith("  ") and "%" in line}
    assert rows == {"allocated": "+0.0%", "reserved": "-50.0%", "device": "+0.0%"}
    assert "nothing to compare" not in text
