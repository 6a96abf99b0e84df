"""`python -m tests.benchmarks`: import, model states, estimate and cold start, as best and median of several runs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

REPEATS = 15
RECIPE = {"model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "micro_batch_size": 4, "sequence_length": 2048}


def seconds_of(call: Callable[[], object], repeats: int, inner: int = 1) -> list[float]:
    """Wall time of one call, `repeats` times, each averaged over `inner` calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(inner):
            call()
        found.append((time.perf_counter() - started) / inner)
    return found


def in_new_process(code: str) -> float:
    """Seconds that `code` reports about itself in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.strip())


def row(name: str, seconds: list[float], goal: float | None = None) -> None:
    """One line: best, median, and the median's ratio to the goal."""
    median = statistics.median(seconds)
    ratio = f"{median / goal:6.2f} x of {1e3 * goal:g} ms" if goal else ""
    print(f"{name:58s} best {1e3 * min(seconds):9.3f} ms  median {1e3 * median:9.3f} ms  {ratio}")


def main() -> None:
    """Print the table."""
    from memplan import engine, model_states
    from memplan.prepare import prepare
    from memplan.recipe import Recipe
    from memplan.resolve import resolve
    from memplan.step import native
    from memplan.training_step import recorded_step, replay, walk

    clock = "import time; t = time.perf_counter()"
    row(
        "import memplan (new process)",
        [in_new_process(f"{clock}; import memplan; print(time.perf_counter() - t)") for _ in range(REPEATS)],
        0.15,
    )
    command = [sys.executable, "-m", "memplan", "estimate", "--json", "--model", RECIPE["model"], "--method", "qlora"]
    cold = seconds_of(lambda: subprocess.run(command, capture_output=True, check=True), REPEATS)
    row("memplan estimate (new process)", cold, 0.35)
    interpreter = seconds_of(lambda: subprocess.run([sys.executable, "-c", ""], check=True), REPEATS)
    row("  of which an empty interpreter", interpreter)

    model_states(**RECIPE)
    row("model states, again", seconds_of(lambda: model_states(**RECIPE), REPEATS, 100), 0.0003)
    resolved = resolve(Recipe(**RECIPE))
    prepared = prepare(resolved)
    row("step recorded and walked anew (32 layers, folded)", seconds_of(lambda: walk(resolved, prepared), REPEATS, 5))
    recipes = [Recipe(**{**RECIPE, "sequence_length": 1024 + 8 * index}) for index in range(50)]

    def peaks() -> None:
        for recipe in recipes:
            asked = resolve(recipe)
            found = prepare(asked)
            step, sizes = recorded_step(asked, found)
            peak = step.walker.run(sizes).peak
            assert peak.at
            assert peak.components

    peaks()
    row(
        "allocated peak, moment, breakdown: another sequence length",
        [seconds / len(recipes) for seconds in seconds_of(peaks, REPEATS)],
        0.00025,
    )
    step, sizes = recorded_step(resolved, prepared)
    again = seconds_of(lambda: replay(resolved, prepared, step, sizes), REPEATS)
    row(f"allocator's replay, {'in C' if native.library() else 'in Python'}", again, 0.003)
    row("whole estimate, again", seconds_of(lambda: engine.estimate(**RECIPE), REPEATS))


if __name__ == "__main__":
    main()
