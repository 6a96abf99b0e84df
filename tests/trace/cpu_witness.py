"""Runs the step of a TraceSpec for real on the CPU and prints torch's profiler's allocations: [[phase, ±bytes], ...].

`python cpu_witness.py < spec.json`, in a process of its own.
"""

from __future__ import annotations

import json
import sys

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


def main() -> None:
    spec = TraceSpec.from_json(sys.stdin.read())
    torch.manual_seed(0)
    torch.autograd.set_multithreading_enabled(False)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model = builder.build_on_meta(spec, builder.build_config(spec))
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
    found = []
    for step in (1, 2):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
            batch = make_batch(spec, model, device)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.autocast is not None)
            with autocast, sdpa_kernel(SDPBackend.MATH):
                loss = model(**batch).loss
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
            loss.backward()
        if step == 1:
            model.zero_grad(set_to_none=True)
            continue
        found += [("forward", size) for size in allocations(forward)]
        found += [("backward", size) for size in allocations(backward)]
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
