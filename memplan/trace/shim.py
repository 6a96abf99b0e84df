"""Makes autograd over fake CUDA tensors possible on a torch that has no usable GPU.

`prepare()` must run before torch is imported, `activate()` right after. Two ways, in this order:

1. `compiled`: `fake_cuda.cpp`, built with the machine's C++ compiler into a cache directory on first use.
2. `patched`: no compiler. The guard of the Meta device is registered for CUDA, and the two functions of
   `at::accelerator` are overwritten in memory. x86-64 only, and brittle by nature: the result says which way was used.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from memplan.errors import UnavailableError

ShimKind = Literal["compiled", "patched"]

_SOURCE = Path(__file__).with_name("fake_cuda.cpp")
# c10/core/DeviceType.h: CUDA = 1, Meta = 14.
_CUDA, _META = 1, 14
_REGISTRY_SYMBOL = "_ZN3c104impl26device_guard_impl_registryE"
_IS_ACCELERATOR_SYMBOL = "_ZN2at11accelerator13isAcceleratorEN3c1010DeviceTypeE"
# xor eax, eax; ret
_RETURN_FALSE = b"\x31\xc0\xc3"


def torch_directory() -> Path:
    """Where torch is installed, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            "memplan trace needs torch, transformers and peft", hint='pip install "memplan[trace]"', code="no_torch"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _cache_directory() -> Path:
    base = os.environ.get("MEMPLAN_CACHE_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memplan"


def build(compiler: str | None = None) -> Path | None:
    """The compiled shim for the installed torch, built if it is not cached yet; None where no compiler works.

    The file name holds a digest of the source, the torch build and the compiler flags, so another torch never meets
    a library that was built against other headers.
    """
    compiler = (
        compiler or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    )
    if not compiler:
        return None
    root = torch_directory()
    version = (root / "version.py").read_text(encoding="utf-8")
    digest = hashlib.sha256(_SOURCE.read_bytes() + version.encode() + platform.machine().encode()).hexdigest()[:16]
    target = _cache_directory() / f"fake_cuda_{digest}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden",
                       f"-I{root / 'include'}", str(_SOURCE), "-o", str(built)]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            built.replace(target)
    except (OSError, subprocess.SubprocessError):
        return None
    return target


class Shim:
    """The shim of this process: `prepare` before `import torch`, `activate` after it."""

    def __init__(self) -> None:
        self.kind: ShimKind = "patched"
        self.active = False
        self._library: ctypes.CDLL | None = None

    def prepare(self) -> None:
        """Opens the compiled library, so that its symbols come before libtorch's.

        Raises:
            UnavailableError: torch is already imported, so that it is too late.
        """
        if "torch" in sys.modules:
            raise UnavailableError("the tracer's worker must prepare before torch is imported", code="torch_imported")
        library = None if os.environ.get("MEMPLAN_SHIM") == "patched" else build()
        if library is None:
            return
        # The registry lives in libc10; opening it first lets the shim's reference resolve.
        ctypes.CDLL(str(torch_directory() / "lib" / "libc10.so"), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.kind = "compiled"

    def activate(self, torch: Any) -> None:
        """Registers the device guard (and, without a compiler, patches the two functions)."""
        self.active = True
        if self._library is not None:
            self._library.memplan_install()
            return
        if platform.machine() != "x86_64":
            raise UnavailableError(
                "memplan trace needs a C++ compiler on this machine", hint="install g++ or set CXX", code="no_compiler"
            )
        lib = Path(torch.__file__).parent / "lib"
        registry = ctypes.c_void_p.in_dll(ctypes.CDLL(str(lib / "libc10.so")), _REGISTRY_SYMBOL)
        slots = ctypes.cast(ctypes.addressof(registry), ctypes.POINTER(ctypes.c_void_p))
        slots[_CUDA] = slots[_META]
        function = getattr(ctypes.CDLL(str(lib / "libtorch_cpu.so")), _IS_ACCELERATOR_SYMBOL)
        _overwrite_code(ctypes.cast(function, ctypes.c_void_p).value or 0, _RETURN_FALSE)


def _overwrite_code(address: int, code: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    start = address // page_bytes * page_bytes
    span = ctypes.c_size_t(address + len(code) - start)
    read_write_execute, read_execute = 7, 5
    if libc.mprotect(ctypes.c_void_p(start), span, read_write_execute) != 0:
        raise UnavailableError(
            "this system does not allow memplan to patch torch in memory",
            hint="install a C++ compiler (g++) so that the compiled shim can be built",
            code="no_compiler",
        )
    ctypes.memmove(address, code, len(code))
    libc.mprotect(ctypes.c_void_p(start), span, read_execute)
