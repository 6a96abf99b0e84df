"""Reads memory by phase: torch.cuda's counters on a GPU, the profiler's allocation events on the CPU.

Both only read. Counters are reset when a phase begins, so that its peak is its own; nothing is allocated by reading.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from memplan.measure.result import PhaseReading
from memplan.units import round_to_block

# torch/cuda/memory.py, memory_stats: what explains a reading that surprises.
STATISTICS = (
    "num_alloc_retries",
    "num_ooms",
    "segment.all.peak",
    "inactive_split_bytes.all.peak",
    "active_bytes.all.peak",
    "requested_bytes.all.peak",
    "oversize_allocations.peak",
)


class Account(Protocol):
    """What a session needs to read memory."""

    phases: list[PhaseReading]

    def begin(self, step: int, phase: str) -> None:
        """A phase starts; the one before it must have ended."""

    def end(self) -> None:
        """The phase is over: its counters are read."""

    def abandon(self) -> None:
        """The phase died: what its counters say is kept."""

    def statistics(self) -> dict[str, int]:
        """Counters of the whole run that explain readings."""

    def history(self) -> tuple[int, ...]:
        """Bytes of every event, negative for frees; empty where events are not recorded."""


class CudaAccount:
    """`torch.cuda.memory_stats`, reset at the start of every phase."""

    def __init__(self, device: torch.device, *, history: bool) -> None:
        self.device = device
        self.phases: list[PhaseReading] = []
        self._open: tuple[int, str, float, int] | None = None
        self._records = False
        self._before = 0
        if history:
            self._records, self._before = True, self._count()
            torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=2_000_000)

    def begin(self, step: int, phase: str) -> None:
        """Wait for the device, then reset its peaks."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._open = (step, phase, time.perf_counter(), self._num_events())

    def end(self) -> None:
        """Wait for the device, then read its peaks."""
        assert self._open is not None
        step, phase, started, first = self._open
        torch.cuda.synchronize(self.device)
        stats = torch.cuda.memory_stats(self.device)
        self.phases.append(
            PhaseReading(
                step=step,
                phase=phase,
                peak_allocated_bytes=stats["allocated_bytes.all.peak"],
                end_allocated_bytes=stats["allocated_bytes.all.current"],
                peak_reserved_bytes=stats["reserved_bytes.all.peak"],
                end_reserved_bytes=stats["reserved_bytes.all.current"],
                peak_active_bytes=stats["active_bytes.all.peak"],
                peak_requested_bytes=stats.get("requested_bytes.all.peak"),
                first_event=first,
                seconds=round(time.perf_counter() - started, 4),
            )
        )
        self._open = None

    def abandon(self) -> None:
        """The phase died: read what its counters say all the same, without waiting for more work."""
        if self._open is not None:
            self.end()

    def statistics(self) -> dict[str, int]:
        """Chosen entries of `memory_stats`; peaks are of the last phase."""
        stats = torch.cuda.memory_stats(self.device)
        return {key: int(stats[key]) for key in STATISTICS if key in stats}

    def history(self) -> tuple[int, ...]:
        """Allocations and frees of the device's trace, in order of time."""
        if not self._records:
            return ()
        index = self.device.index or 0
        trace = torch.cuda.memory._snapshot()["device_traces"][index]
        return tuple(
            entry["size"] if entry["action"] == "alloc" else -entry["size"]
            for entry in trace
            # A free is requested once and completed once; the first is when the program let go.
            if entry["action"] in ("alloc", "free_requested")
        )

    def _num_events(self) -> int:
        return self._count() - self._before if self._records else 0

    def _count(self) -> int:
        stats = torch.cuda.memory_stats(self.device)
        return int(stats.get("allocation.all.allocated", 0) + stats.get("allocation.all.freed", 0))


class CpuAccount:
    """The profiler's `[memory]` events: live bytes of storages, rounded to 512 as a GPU would. For testing alone."""

    def __init__(self) -> None:
        self.phases: list[PhaseReading] = []
        self.live_bytes = 0
        self._events: list[int] = []
        self._profile: Any = None
        self._open: tuple[int, str, float, int] | None = None

    def begin(self, step: int, phase: str) -> None:
        """Start a profile."""
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        self._open = (step, phase, time.perf_counter(), len(self._events))

    def end(self) -> None:
        """Play the profile's events."""
        assert self._open is not None
        step, phase, started, first = self._open
        self._profile.__exit__(None, None, None)
        peak = self.live_bytes
        found = [event for event in self._profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(found, key=lambda entry: entry.start_ns()):
            size = event.nbytes()
            rounded = round_to_block(size) if size > 0 else -round_to_block(-size)
            self._events.append(rounded)
            self.live_bytes += rounded
            peak = max(peak, self.live_bytes)
        self.phases.append(
            PhaseReading(
                step=step,
                phase=phase,
                peak_allocated_bytes=peak,
                end_allocated_bytes=self.live_bytes,
                first_event=first,
                seconds=round(time.perf_counter() - started, 4),
            )
        )
        self._open = self._profile = None

    def abandon(self) -> None:
        """The phase died."""
        if self._open is not None:
            self.end()

    def statistics(self) -> dict[str, int]:
        """Nothing on the CPU."""
        return {}

    def history(self) -> tuple[int, ...]:
        """Every event so far."""
        return tuple(self._events)
