"""The few calls of NVIDIA's management library that a measurement needs, through ctypes: no package required.

Function and structure names are those of nvml.h (NVML API reference). Reading through NVML creates no CUDA context, so
that the card's use before a run can be read without changing it.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

_SUCCESS = 0
_INSUFFICIENT_SIZE = 7
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlMemory:
    """A card's memory as the driver counts it.

    Attributes:
        driver_reserved_bytes: what the driver keeps for itself; None before driver R510, which hides it.
        used_bytes: taken by all processes, without the driver's own where that is known.
        process_bytes: taken by this process; None where the driver lists it under another number (containers).
    """

    total_bytes: int
    used_bytes: int
    driver_reserved_bytes: int | None = None
    process_bytes: int | None = None


class Nvml:
    """An open library; `Nvml.open()` gives None where there is none."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @classmethod
    def open(cls, path: str = "libnvidia-ml.so.1") -> Nvml | None:
        """The library, initialised, or None where it is missing or refuses."""
        try:
            library = ctypes.CDLL(path)
        except OSError:
            return None
        return cls(library) if library.nvmlInit_v2() == _SUCCESS else None

    def driver_version(self) -> str:
        """Such as `580.159.04`; empty where it cannot be read."""
        text = ctypes.create_string_buffer(96)
        done = self._library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        return text.value.decode() if done == _SUCCESS else ""

    def memory(self, uuid: str = "", index: int = 0) -> NvmlMemory | None:
        """Memory of the card with `uuid` (as torch reports it, without its `GPU-`), else of the `index`-th visible one."""
        handle = self._handle(uuid, index)
        if handle is None:
            return None
        process = self._process_bytes(handle)
        second = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | (2 << 24))
        newer = getattr(self._library, "nvmlDeviceGetMemoryInfo_v2", None)
        if newer is not None and newer(handle, ctypes.byref(second)) == _SUCCESS:
            return NvmlMemory(
                total_bytes=second.total,
                used_bytes=second.used,
                driver_reserved_bytes=second.reserved,
                process_bytes=process,
            )
        first = _Memory()
        if self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(first)) != _SUCCESS:
            return None
        return NvmlMemory(total_bytes=first.total, used_bytes=first.used, process_bytes=process)

    def _handle(self, uuid: str, index: int) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        if uuid:
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            if self._library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)) == _SUCCESS:
                return handle
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
        if index < len(entries):
            if not entries[index].isdigit():
                return self._handle(entries[index], 0) if not uuid else None
            index = int(entries[index])
        done = self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
        return handle if done == _SUCCESS else None

    def _process_bytes(self, handle: ctypes.c_void_p) -> int | None:
        call = getattr(self._library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
        if call is None:
            return None
        count = ctypes.c_uint(0)
        if call(handle, ctypes.byref(count), None) not in (_SUCCESS, _INSUFFICIENT_SIZE) or not count.value:
            return None
        count = ctypes.c_uint(count.value + 8)  # processes may appear between the two calls
        rows = (_Process * count.value)()
        if call(handle, ctypes.byref(count), rows) != _SUCCESS:
            return None
        mine = [row.used for row in rows[: count.value] if row.pid == os.getpid()]
        return int(mine[0]) if mine and mine[0] not in (0, _NOT_AVAILABLE) else None
