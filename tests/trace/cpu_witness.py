"""Runs steps of TraceSpecs for real on the CPU and prints what torch's profiler saw allocated.

`python cpu_witness.py < specs.json`, in a process of its own: a JSON list of specs in, a JSON list of
`{"forward": [bytes, ...], "backward": [bytes, ...]}` out; frees are negative. The second step is recorded.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from memplan.trace import builder
from memplan.trace.batches import make_batch
from memplan.trace.methods import apply_method
from memplan.trace.spec import TraceSpec


class NoLabels:
    """Stands in for the tracer's labels, which the witness does not need."""

    def before_method(self, model: torch.nn.Module) -> None:
        pass


def allocations(prof: profile) -> list[int]:
    """Bytes of every CPU allocation (positive) and free (negative), in order of time."""
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def witness(spec: TraceSpec) -> dict[str, list[int]]:
    """Two real steps of `spec` on the CPU; the allocations of the second."""
    device = torch.device("cpu")
    model: Any = builder.build_on_meta(spec, builder.build_config(spec))
    for _ in builder.load(model, device, None):
        pass
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.zero_()
    model.train(spec.train_mode)
    model = apply_method(spec, model, NoLabels())  # type: ignore[arg-type]
    model.train(spec.train_mode)
    found: dict[str, list[int]] = {}
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
            batch = make_batch(spec, model, device)
            with sdpa_kernel(SDPBackend.MATH):
                loss = model(**batch).loss
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
            loss.backward()
        found = {"forward": allocations(forward), "backward": allocations(backward)}
        model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    torch.manual_seed(0)
    torch.autograd.set_multithreading_enabled(False)
    torch.set_num_threads(1)
    specs = [TraceSpec.from_dict(entry) for entry in json.loads(sys.stdin.read())]
    sys.stdout.write("\n" + json.dumps([witness(spec) for spec in specs]) + "\n")


if __name__ == "__main__":
    main()
