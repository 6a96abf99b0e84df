"""What is read of a GPU, against stand-ins for torch.cuda and NVML that count as the real ones do."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
import torch

from memplan.measure.account import CudaAccount
from memplan.measure.environment import environment, host_peak_bytes
from memplan.measure.nvml import Nvml, _MemoryV2, _Process
from memplan.measure.session import is_out_of_memory
from memplan.units import MIB


class Counters:
    """`torch.cuda`'s counters: current and peak by name, with the caching allocator's two levels."""

    def __init__(self) -> None:
        self.current = {"allocated": 0, "reserved": 0, "active": 0, "requested": 0}
        self.peak = dict(self.current)
        self.allocations = self.frees = 0
        self.synchronised = 0

    def take(self, size: int) -> None:
        self.allocations += 1
        for name, change in (("allocated", size), ("active", size), ("requested", size - 100)):
            self.current[name] += change
        self.current["reserved"] = max(self.current["reserved"], self.current["allocated"])
        self.peak = {name: max(self.peak[name], now) for name, now in self.current.items()}

    def free(self, size: int) -> None:
        self.frees += 1
        for name, change in (("allocated", size), ("active", size), ("requested", size - 100)):
            self.current[name] -= change

    def stats(self, device: Any = None) -> dict[str, int]:
        found = {
            "num_alloc_retries": 2,
            "allocation.all.allocated": self.allocations,
            "allocation.all.freed": self.frees,
        }
        for name, now in self.current.items():
            found[f"{name}_bytes.all.current"], found[f"{name}_bytes.all.peak"] = now, self.peak[name]
        return found

    def reset(self, device: Any = None) -> None:
        self.peak = dict(self.current)

    def synchronise(self, device: Any = None) -> None:
        self.synchronised += 1


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    made = Counters()
    monkeypatch.setattr(torch.cuda, "memory_stats", made.stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", made.reset)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronise)
    return made


def test_a_phase_has_its_own_peaks(counters: Counters) -> None:
    account = CudaAccount(torch.device("cuda:0"), history=False)
    account.begin(1, "forward")
    counters.take(10 * MIB)
    counters.take(5 * MIB)
    counters.free(5 * MIB)
    account.end()
    account.begin(1, "backward")
    counters.take(1 * MIB)
    account.end()
    forward, backward = account.phases
    assert (forward.peak_allocated_bytes, forward.end_allocated_bytes) == (15 * MIB, 10 * MIB)
    assert forward.peak_requested_bytes == 15 * MIB - 200
    assert (backward.peak_allocated_bytes, backward.end_allocated_bytes) == (11 * MIB, 11 * MIB)
    # Reserved bytes do not shrink by themselves: the second phase's peak is what the first had left.
    assert (forward.peak_reserved_bytes, backward.peak_reserved_bytes) == (15 * MIB, 15 * MIB)
    assert counters.synchronised == 4
    assert account.statistics()["num_alloc_retries"] == 2
    assert account.history() == ()


def test_a_phase_that_died_is_read(counters: Counters) -> None:
    account = CudaAccount(torch.device("cuda:0"), history=False)
    account.abandon()
    account.begin(1, "forward")
    counters.take(3 * MIB)
    account.abandon()
    assert [entry.peak_allocated_bytes for entry in account.phases] == [3 * MIB]


def test_the_history_holds_births_and_requested_deaths(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    trace = [
        {"action": "segment_alloc", "size": 20 * MIB},
        {"action": "alloc", "size": 1000},
        {"action": "free_requested", "size": 1000},
        {"action": "free_completed", "size": 1000},
    ]
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: asked.update(options))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"device_traces": [trace]})
    account = CudaAccount(torch.device("cuda:0"), history=True)
    account.begin(0, "load")
    counters.take(1000)
    counters.free(1000)
    account.end()
    account.begin(1, "forward")
    account.end()
    assert asked["context"] is None
    assert [entry.first_event for entry in account.phases] == [0, 2]
    assert account.history() == (1000, -1000)


# -- NVML -------------------------------------------------------------------------------------------------


class Library:
    """`libnvidia-ml.so.1` with one card."""

    def __init__(self, *, second: bool = True, pid: int | None = None) -> None:
        self.asked: list[str] = []
        self._pid = pid if pid is not None else os.getpid()
        if second:
            self.nvmlDeviceGetMemoryInfo_v2 = self._memory_v2
        self.nvmlDeviceGetComputeRunningProcesses_v3 = self._processes

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802 (NVML's names)
        self.asked.append(name.decode())
        return 0 if name == b"GPU-abc" else 6

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        self.asked.append(str(index.value))
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: Any) -> int:  # noqa: N802
        text.value = b"580.159.04"
        return 0

    def _memory_v2(self, handle: Any, memory: Any) -> int:
        found = memory._obj
        assert found.version == ctypes.sizeof(_MemoryV2) | (2 << 24)
        found.total, found.reserved, found.free, found.used = 81_559 * MIB, 480 * MIB, 80_079 * MIB, 1000 * MIB
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.free, memory._obj.used = 15_109 * MIB, 15_000 * MIB, 109 * MIB
        return 0

    def _processes(self, handle: Any, count: Any, rows: Any) -> int:
        if rows is None:
            count._obj.value = 2
            return 7
        rows[0] = _Process(pid=1, used=5 * MIB)
        rows[1] = _Process(pid=self._pid, used=900 * MIB)
        count._obj.value = 2
        return 0


def test_the_card_by_uuid_and_the_process_by_number() -> None:
    library = Library()
    found = Nvml(library).memory("abc")  # type: ignore[arg-type]
    assert found is not None
    assert library.asked == ["GPU-abc"]
    assert (found.total_bytes, found.driver_reserved_bytes) == (81_559 * MIB, 480 * MIB)
    assert (found.used_bytes, found.process_bytes) == (1000 * MIB, 900 * MIB)
    assert Nvml(library).driver_version() == "580.159.04"  # type: ignore[arg-type]


def test_a_container_hides_the_process() -> None:
    found = Nvml(Library(pid=2**31)).memory("abc")  # type: ignore[arg-type]
    assert found is not None
    assert found.process_bytes is None


def test_an_old_driver_has_no_second_version() -> None:
    found = Nvml(Library(second=False)).memory("abc")  # type: ignore[arg-type]
    assert found is not None
    assert (found.total_bytes, found.driver_reserved_bytes) == (15_109 * MIB, None)


@pytest.mark.parametrize(("visible", "asked"), [("", ["0"]), ("3", ["3"]), ("2,5", ["2"]), ("GPU-abc", ["GPU-abc"])])
def test_the_visible_card_is_read(visible: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    library = Library()
    assert Nvml(library).memory() is not None  # type: ignore[arg-type]
    assert library.asked == asked


def test_no_library_is_no_error() -> None:
    assert Nvml.open("libnothing-of-that-name.so.1") is None


# -- the rest ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "is_oom"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_out_of_memory(error: RuntimeError, is_oom: bool) -> None:
    assert is_out_of_memory(error) is is_oom


def test_the_environment_names_versions_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    found = environment(torch, "cpu", None)
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "gpu" not in found
    assert host_peak_bytes() > 10 * MIB
