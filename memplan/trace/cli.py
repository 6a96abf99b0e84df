"""A small command line of its own, for looking at a trace: `python -m memplan.trace SPEC.json --events`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from memplan.errors import InvalidValueError, MemplanError, UnsupportedError
from memplan.estimate import Estimate
from memplan.trace.depth import SHALLOWEST, depth_of, extrapolate
from memplan.trace.estimate import ResolvedRecipe, spec_of, to_estimate
from memplan.trace.result import TraceResult
from memplan.trace.runner import Progress, run
from memplan.trace.spec import TraceSpec
from memplan.trace.viz import write_snapshot
from memplan.units import format_bytes


def write_events(result: TraceResult, stream: TextIO, *, min_bytes: int = 0) -> None:
    """One line an event: sign, block bytes, live MiB after it, phase, component, op, module, shape, dtype, name."""
    for event in result.walk():
        storage = event.storage
        if storage.size_bytes < min_bytes:
            continue
        sign = "+" if event.alloc else "-"
        stream.write(
            f"{sign}{storage.block_bytes:<12d} {event.live_bytes:>14d} {event.phase}{event.step:<2d} #{storage.id:<6d} "
            f"{storage.component:<18s} {storage.op:<40s} {storage.module or '-':<46s} "
            f"{'x'.join(map(str, storage.shape)):<18s} {storage.dtype:<9s} {storage.name}\n"
        )


def write_event_lines(result: TraceResult, stream: TextIO) -> None:
    """Every birth and death of a storage in order, one JSON object a line.

    Keys: `change` ("+" born, "-" freed), `id` of the storage, `step`, `phase`, `op` that allocated it, `module` that ran
    the op (or whose gradient it computes; empty for the loss and the optimizer), `shape`, `dtype`, `bytes` asked for,
    `block_bytes` (rounded up to 512), `component`, `name` of the parameter or state, and `live_bytes`: the sum of
    `block_bytes` after the event.
    """
    for event in result.walk():
        storage = event.storage
        entry = {
            "change": "+" if event.alloc else "-",
            "id": storage.id,
            "step": event.step,
            "phase": event.phase,
            "op": storage.op,
            "module": storage.module,
            "shape": list(storage.shape),
            "dtype": storage.dtype,
            "bytes": storage.size_bytes,
            "block_bytes": storage.block_bytes,
            "component": storage.component,
            "name": storage.name,
            "live_bytes": event.live_bytes,
        }
        stream.write(json.dumps(entry, separators=(",", ":")) + "\n")


def write_summary(result: TraceResult, stream: TextIO) -> None:
    """A table of phases: peak, end, where, and the components at the peak."""
    for entry in result.phases:
        parts = ", ".join(f"{key} {format_bytes(value)}" for key, value in entry.components.items())
        stream.write(
            f"{entry.phase:>15s} {entry.step}  peak {entry.peak_bytes:>14d} {format_bytes(entry.peak_bytes):>12s}"
            f"  end {entry.end_bytes:>14d}  at {entry.at.name} [{entry.at.module}]\n{'':19s}{parts}\n"
        )
    stream.write(f"parameters {result.parameters}  attention {result.attention}  guesses {result.guesses}\n")
    stream.write(f"versions {result.versions}  seconds {result.seconds}\n")
    for note in result.notes:
        stream.write(f"note: {note}\n")


def answer(
    resolved: ResolvedRecipe,
    *,
    events: TextIO | None = None,
    memory_viz: Path | None = None,
    timeout_s: float | None = None,
    layers: str = "full",
    progress: Progress | None = None,
) -> Estimate:
    """What `memplan trace` does with a resolved recipe: trace it, write what was asked for, return the estimate.

    Args:
        resolved: the recipe with its defaults filled in.
        events: where the event list goes, as JSON lines (`write_event_lines`).
        memory_viz: where the snapshot for PyTorch's memory viewer goes.
        timeout_s: how long the worker may take.
        layers: `full`, `auto`, or how many layers to trace: a deeper model is extrapolated from them where its layers
            are equal, and traced at full depth where they are not (`memplan.trace.depth`).
        progress: told how far the trace is.

    Raises:
        InvalidValueError: `layers` is none of these.
        UnsupportedError: the recipe cannot be traced, or the trace could not be finished.
        UnavailableError: the libraries of the extra `trace` are missing.
    """
    spec = spec_of(resolved)
    result = _traced(spec, layers, timeout_s, progress)
    if events is not None:
        write_event_lines(result, events)
    if memory_viz is not None:
        write_snapshot(result, memory_viz, expandable_segments=spec.expandable_segments)
    return to_estimate(result, resolved, expandable_segments=spec.expandable_segments)


def check_layers(layers: str) -> int:
    """How many layers to trace at most; 0 for all of them.

    Raises:
        InvalidValueError: neither `full`, `auto` nor a number from 6.
    """
    if layers in ("full", "auto"):
        return SHALLOWEST if layers == "auto" else 0
    if not layers.isascii() or not layers.isdigit() or int(layers) < SHALLOWEST:
        raise InvalidValueError("--layers", layers, f"full, auto, or a number from {SHALLOWEST} of layers to trace")
    return int(layers)


def _traced(spec: TraceSpec, layers: str, timeout_s: float | None, progress: Progress | None) -> TraceResult:
    traced = check_layers(layers)
    if not traced:
        return run(spec, timeout_s=timeout_s, progress=progress)
    note = f"traced at full depth: the model has no more than {traced} layers"
    if depth_of(spec.model_config) > traced or not depth_of(spec.model_config):
        try:
            return extrapolate(spec, traced_layers=traced, timeout_s=timeout_s)
        except UnsupportedError as error:
            if error.code != "layers_differ":
                raise
            note = f"traced at full depth: {error.message}"
    result = run(spec, timeout_s=timeout_s, progress=progress)
    result.notes.append(note)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m memplan.trace`."""
    parser = argparse.ArgumentParser(prog="python -m memplan.trace", description=__doc__)
    parser.add_argument("spec", type=Path, help="a JSON file with the fields of memplan.trace.TraceSpec")
    parser.add_argument("--events", action="store_true", help="print every event")
    parser.add_argument("--min-bytes", type=int, default=0, help="leave out smaller storages")
    parser.add_argument("--saved", action="store_true", help="print what the last forward pass left alive")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--memory-viz", type=Path, help="write a snapshot for PyTorch's memory viewer")
    parser.add_argument("--layers", default="full", help="full, auto, or how many layers to trace")
    options = parser.parse_args(argv)
    try:
        result = _traced(TraceSpec.from_json(options.spec.read_text(encoding="utf-8")), options.layers, None, None)
    except MemplanError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if options.memory_viz:
        write_snapshot(result, options.memory_viz)
    if options.json:
        sys.stdout.write(result.to_json() + "\n")
        return 0
    if options.events:
        write_events(result, sys.stdout, min_bytes=options.min_bytes)
    if options.saved:
        for storage in result.saved_storages(max(result.saved)):
            shape = "x".join(map(str, storage.shape))
            sys.stdout.write(
                f"{storage.block_bytes:>12d} {storage.component:<16s} {storage.op:<36s} {storage.module or '-':<46s} "
                f"{shape:<18s} {storage.dtype}\n"
            )
    write_summary(result, sys.stderr if options.events or options.saved else sys.stdout)
    return 0
