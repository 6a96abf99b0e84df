"""What one measured run gives back, as JSON across the process boundary. No torch here.

Levels as in `memplan.estimate`: allocated and reserved are torch.cuda's own counters; device is what the driver says.
On the CPU, where no caching allocator runs, only live bytes exist: the run is for testing, and says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["cuda", "cpu"]
Outcome = Literal["ok", "out_of_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How to measure, beside what to run.

    Attributes:
        device: `cuda`; `cpu` runs the same code for testing, with live bytes only.
        capacity_bytes: limit on what torch's allocator may reserve (`set_per_process_memory_fraction`), or None.
        history: whether to keep every allocator event.
        repeat: number of this run among repeats of the same cell, from 0.
    """

    device: Device = "cuda"
    capacity_bytes: int | None = None
    history: bool = False
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReading:
    """The counters of one phase; peaks are of this phase alone.

    Attributes:
        step: 0 for the load.
        peak_requested_bytes: before rounding to blocks of 512; None on the CPU, as are active and reserved bytes.
        first_event: index of the phase's first event in the allocator history.
    """

    step: int
    phase: str
    peak_allocated_bytes: int
    end_allocated_bytes: int
    peak_reserved_bytes: int | None = None
    end_reserved_bytes: int | None = None
    peak_active_bytes: int | None = None
    peak_requested_bytes: int | None = None
    first_event: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An out-of-memory error: where the run was, and what the allocator held then.

    Attributes:
        where: in words, such as `backward of step 1`.
        frames: innermost last, `file:line function`, of the Python stack at the failed allocation.
    """

    step: int
    phase: str
    where: str
    message: str
    frames: tuple[str, ...] = ()
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """What the driver and torch say about the card; every size is None where it could not be read.

    Attributes:
        torch_total_bytes: `torch.cuda.get_device_properties().total_memory`.
        used_before_bytes: NVML's used memory before this process touched the GPU.
        used_bytes: NVML's used memory after the last step, with the process alive.
        process_bytes: NVML's figure for this very process; None where the driver does not see its number.
        free_bytes: `torch.cuda.mem_get_info` after the last step.
        reserved_bytes: `torch.cuda.memory_reserved` at that moment: context = device use - this.
    """

    torch_total_bytes: int | None = None
    nvml_total_bytes: int | None = None
    nvml_driver_reserved_bytes: int | None = None
    used_before_bytes: int | None = None
    used_bytes: int | None = None
    process_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None

    @property
    def own_bytes(self) -> int | None:
        """What this process took of the card when it was read: the driver's figure for it, else used - used before."""
        if self.process_bytes is not None:
            return self.process_bytes
        if self.used_bytes is None or self.used_before_bytes is None:
            return None
        return self.used_bytes - self.used_before_bytes

    @property
    def context_bytes(self) -> int | None:
        """Device use outside torch's allocator: own bytes - reserved bytes."""
        own = self.own_bytes
        return None if own is None or self.reserved_bytes is None else own - self.reserved_bytes


@dataclass(frozen=True, kw_only=True)
class MeasureResult:
    """One measured run.

    Attributes:
        spec: the fields of the `TraceSpec` that was run.
        phases: load, then forward, backward, optimizer_step of every step; up to the death where there is one.
        resident: bytes by component of what stays: weights, adapters, quantization_state, buffers, optimizer_states,
            gradients (of one whole step); each tensor rounded to 512.
        parameters: elements, `total` and `trainable`.
        host_peak_bytes: largest resident set of the process.
        paged_bytes: optimizer state in CUDA managed memory, which torch's counters do not see.
        environment: GPU, driver, versions, allocator settings, as text.
        statistics: torch.cuda.memory_stats that explain a reading (retries, inactive bytes, segments).
        notes: what was treated specially.
        history: every allocator event, positive bytes for a birth and negative for a death; empty unless asked for.
    """

    spec: Mapping[str, Any]
    options: MeasureOptions
    outcome: Outcome
    phases: tuple[PhaseReading, ...]
    resident: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    device: DeviceReading = field(default_factory=DeviceReading)
    death: Death | None = None
    host_peak_bytes: int = 0
    paged_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    history: tuple[int, ...] = ()

    @property
    def top(self) -> PhaseReading:
        """The phase with the highest allocated peak."""
        return max(self.phases, key=lambda entry: entry.peak_allocated_bytes)

    @property
    def max_allocated_bytes(self) -> int:
        """`torch.cuda.max_memory_allocated` of the whole run."""
        return max((entry.peak_allocated_bytes for entry in self.phases), default=0)

    @property
    def max_reserved_bytes(self) -> int | None:
        """`torch.cuda.max_memory_reserved` of the whole run; None on the CPU."""
        found = [entry.peak_reserved_bytes for entry in self.phases if entry.peak_reserved_bytes is not None]
        return max(found) if found else None

    @property
    def max_device_bytes(self) -> int | None:
        """Most that the run took of the card: highest reserved + what it holds outside the allocator."""
        context, reserved = self.device.context_bytes, self.max_reserved_bytes
        return None if context is None or reserved is None else reserved + context

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MeasureResult:
        """The result that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MeasureResult:
        """The result whose `dataclasses.asdict` is `data`."""
        death = data.get("death")
        return cls(
            **{
                **data,
                "options": MeasureOptions(**data["options"]),
                "phases": tuple(PhaseReading(**entry) for entry in data["phases"]),
                "device": DeviceReading(**data["device"]),
                "death": Death(**{**death, "frames": tuple(death["frames"])}) if death else None,
                "notes": tuple(data["notes"]),
                "history": tuple(data["history"]),
            }
        )
