"""`python -m tests.benchmarks.check`: cold `memplan check` on three recipes, with and without a base, and `memplan diff`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_SECONDS = 0.5
REPEATS = 15
_BUDGETS = """\
schema = 1
[[check]]
name = "full"
recipe_file = "full.yaml"
gpu = "h100"
max_increase = "1 GiB"
[[check]]
name = "lora"
recipe_file = "lora.json"
gpu = "a100-80gb"
[[check]]
name = "qlora"
recipe = { model = "mistralai/Mistral-7B-v0.1", method = "qlora", micro_batch_size = 4, sequence_length = 2048 }
gpu = "rtx-4090"
"""
_FULL = "model: meta-llama/Llama-3.2-1B\nsequence_length: {length}\nactivation_checkpointing: true\n"
_LORA = '{"model": "Qwen/Qwen2.5-7B", "method": "lora", "sequence_length": 2048, "activation_checkpointing": true}'


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "memplan.toml").write_text(_BUDGETS, "utf-8")
        (folder / "full.yaml").write_text(_FULL.format(length=1024), "utf-8")
        (folder / "lora.json").write_text(_LORA, "utf-8")
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
            subprocess.run(["git", *command], cwd=folder, check=True)
        _row("memplan check, 3 recipes (new process)", folder, ["check"], GOAL_SECONDS)
        _row("memplan check --base HEAD, nothing changed", folder, ["check", "--base", "HEAD"])
        (folder / "full.yaml").write_text(_FULL.format(length=2048), "utf-8")
        _row("memplan check --base HEAD, one key changed", folder, ["check", "--base", "HEAD", "--exit-zero"])
        _row("memplan diff HEAD:full.yaml full.yaml", folder, ["diff", "HEAD:full.yaml", "full.yaml"])


def _row(name: str, folder: Path, arguments: list[str], goal: float | None = None) -> None:
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "memplan", *arguments], cwd=folder, check=True, capture_output=True)
        found.append(time.perf_counter() - started)
    median = statistics.median(found)
    ratio = f"  {median / goal:.2f} x of {1e3 * goal:g} ms" if goal else ""
    print(f"{name:45s} best {1e3 * min(found):7.1f} ms  median {1e3 * median:7.1f} ms{ratio}", flush=True)


if __name__ == "__main__":
    main()
