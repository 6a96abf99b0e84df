"""`python -m tests.planner.against_trace [PART OF A NAME]`: ten plans that fit according to the trace.

Each recipe is traced as given and as the plan changes it: the real model, method and optimizer on fake CUDA tensors, which
share no code with the planner's estimates. Takes five minutes; needs the extra `trace`. Exit code 1 where a plan does not
hold.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from memplan.errors import UnsupportedError
from memplan.estimate import Estimate, Fits
from memplan.planner import Plan, plan
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.cli import answer
from memplan.units import GIB
from tests.planner.recipes import REAL


def traced(keys: dict[str, Any]) -> Estimate:
    """The trace of a recipe."""
    return answer(resolve(Recipe(**keys)), timeout_s=900)


def holds(found: Plan, before: Estimate, after: Estimate) -> bool:
    """Whether the trace says what the plan says: the recipe does not fit, the changed one does."""
    assert found.smallest is not None
    return (
        found.current.fits is Fits.DOES_NOT_FIT
        and before.verdict().fits is Fits.DOES_NOT_FIT
        and after.verdict().fits is Fits.FITS
    )


def main(part: str = "") -> int:
    """Print the table; 1 where a plan does not hold."""
    failed = 0
    print(
        "device bytes in GiB: as given (estimate, trace), as planned (estimate, trace, trace's upper bound of usable)"
    )
    for name, keys in REAL.items():
        if part.casefold() not in name.casefold():
            continue
        started = time.perf_counter()
        found = plan(**keys)
        if found.smallest is None:
            print(f"NO PLAN  {name}: {found.current.fits}")
            failed += 1
            continue
        proposal = found.smallest
        try:
            before, after = traced(keys), traced(proposal.recipe)
        except UnsupportedError as error:
            print(f"NO TRACE {name}: {error.message}")
            failed += 1
            continue
        right = holds(found, before, after)
        failed += not right
        verdict = after.verdict()
        print(
            f"{'fits' if right else 'WRONG':8s} {name}: {proposal.title}\n"
            f"         {found.current.peak.device_bytes / GIB:7.2f} {before.peak.device_bytes / GIB:7.2f}  ->"
            f" {proposal.peak.device_bytes / GIB:6.2f} {after.peak.device_bytes / GIB:6.2f}"
            f"  at most {verdict.upper_bytes / GIB:6.2f} of {verdict.usable_bytes / GIB:6.2f}"
            f"  live differs by {proposal.peak.live_bytes - after.peak.live_bytes} B"
            f"  ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
