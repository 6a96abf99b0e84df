"""`python -m tests.benchmarks.planner`: candidates scored a second in the planner's inner loop, and seconds of whole plans.

The inner loop scores a structure at a batch and a sequence, as the search does: the exact live peak against the limit. Plans
are timed in processes of their own, once with nothing recorded yet and once more. All times are those of one core
(`time.process_time`), so that neighbours on the machine do not count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product

from tests.planner.recipes import REAL

GOAL_CANDIDATES = 20_000
GOAL_SECONDS = 0.5
REPEATS = 5
_PLAN = """
import json, sys, time
import memplan.planner
from memplan.engine import estimate
keys = json.loads(sys.argv[1])
estimate(model="openai-community/gpt2", gpu="t4")  # modules and tables are read, nothing of this model is recorded
seconds = []
for _ in range(2):
    started = time.process_time()
    found = memplan.planner.plan(**keys)
    seconds.append(time.process_time() - started)
print(json.dumps([*seconds, found.space.combinations, found.space.judged]))
"""


def candidates_a_second(keys: dict[str, object]) -> float:
    """How many (batch, sequence) points of one structure are scored a second: the best of several rounds."""
    from memplan.planner.limit import limit_of
    from memplan.planner.scoring import Scorer
    from memplan.recipe import Recipe

    recipe = Recipe(**keys)
    structure = Scorer(limit_of(recipe.gpu, None)).structure(recipe)
    assert structure is not None
    points = list(product(range(1, 33), range(128, 2048, 64)))
    for batch, sequence in points:  # every course that a step can take is recorded
        structure.best(batch, sequence)
    return max(len(points) / _seconds(lambda: [structure.best(*point) for point in points]) for _ in range(REPEATS))


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def plan_seconds(keys: dict[str, object]) -> tuple[float, float, int, int]:
    """First and second plan of a new process, combinations in the space, recipes estimated in full: medians."""
    command = [sys.executable, "-c", _PLAN, json.dumps(keys)]
    runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    first, again = (statistics.median(run[column] for run in runs) for column in (0, 1))
    return first, again, runs[0][2], runs[0][3]


def main() -> None:
    """Print the table."""
    print(f"{'recipe':55s} {'scored/s':>9s} {'first plan':>11s} {'again':>8s} {'space':>6s} {'judged':>7s}")
    for name, keys in REAL.items():
        first, again, space, judged = plan_seconds(keys)
        rate = candidates_a_second(keys)
        print(f"{name:55s} {rate:9,.0f} {first:9.2f} s {again:6.2f} s {space:6d} {judged:7d}", flush=True)
    print(f"goals: {GOAL_CANDIDATES:,} candidates a second on one core, {GOAL_SECONDS} s a plan")


if __name__ == "__main__":
    main()
