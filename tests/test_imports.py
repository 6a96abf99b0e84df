"""What `import memplan` costs, and what it exports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import memplan

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "fastapi", "numpy", "typer", "rich", "yaml")

EXPORTS = [
    "Component", "Estimate", "Fits", "InputError", "MemplanError", "Phase", "Recipe", "UnavailableError",
    "UnsupportedError", "check", "estimate", "model_states", "plan",
]  # fmt: skip


def heavy_modules_after(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has imported after running `code`."""
    probe = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.split()


def test_import_is_light() -> None:
    assert heavy_modules_after("import memplan") == []


def test_an_estimate_is_light_too() -> None:
    code = """
import memplan
config = {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 97}
for method in ("full", "lora", "qlora"):
    memplan.estimate(model=config, method=method, sequence_length=16, gpu="rtx-4090")
memplan.model_states(model="mistralai/Mistral-7B-v0.1", optim="adamw_8bit")
"""
    assert heavy_modules_after(code) == []


@pytest.mark.parametrize("name", ["torch", "yaml"])
def test_the_check_can_fail(name: str) -> None:
    assert name in heavy_modules_after(f"import memplan, {name}")


def test_exports() -> None:
    assert sorted(memplan.__all__) == sorted(EXPORTS)
    assert all(hasattr(memplan, name) for name in memplan.__all__)


def test_the_engine_is_loaded_by_the_first_estimate() -> None:
    probe = "import memplan, sys\nprint('memplan.engine' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "False"
