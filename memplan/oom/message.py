"""Reads PyTorch's out-of-memory messages, of every release from 1.0 to 2.14.

c10/cuda/CUDACachingAllocator.cpp, `malloc`. Sizes are printed by `format_size` with two decimals in binary units:

    1.0 - 1.4   Tried to allocate A (GPU 0; T total capacity; B already allocated; F free; C cached)
    1.5 - 2.0   the same with `R reserved in total by PyTorch`, and `L allowed;` under a memory fraction
    2.1 - 2.2   Tried to allocate A. GPU 0 has a total capacty of T of which F is free. ... (sic)
    2.3 -       the same, spelled right; `Process N has P memory in use.` for each, or `Including non-PyTorch memory, this
                process has P memory in use.`; `L allowed;` under a fraction; `with G allocated in private pools`

Errors of the driver and of libraries (`CUDA error: out of memory`, CUBLAS_STATUS_ALLOC_FAILED) name no sizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from memplan.errors import InputError

_SIZE = r"(\d+(?:\.\d+)?) ?(bytes|B|KiB|MiB|GiB|TiB|KB|MB|GB)"
_UNITS = {"bytes": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# Wrapped for the terminal, quoted and prefixed lines are joined before they are read.
_PREFIX = re.compile(r"^\s*(?:\[(?:rank)?\d+\]:?|[>|E#]|\d+:)\s?")


class Source(StrEnum):
    """Who ran out of memory."""

    ALLOCATOR = "allocator"  # torch's caching allocator: the message has sizes
    DRIVER = "driver"  # cudaMalloc or a kernel outside the allocator, or the context itself
    LIBRARY = "library"  # cuBLAS or cuDNN could not make its handle or workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class OomMessage:
    """One message. Sizes are what its two decimals say, in bytes; None where it does not name them.

    Attributes:
        requested_bytes: the segment that was asked of the driver: the tensor, rounded as the allocator does.
        requested_text: the same as printed, for exact comparison.
        capacity_bytes: what torch sees of the card.
        process_bytes: what this process holds, context included.
        other_processes: what each other process holds, by its number.
        allocated_bytes: in live tensors.
        unallocated_bytes: reserved by the allocator and not in a tensor.
        private_pool_bytes: in CUDA graphs' own pools.
        allowed_bytes: limit under `set_per_process_memory_fraction`.
        variable: the environment variable that this release reads: PYTORCH_CUDA_ALLOC_CONF, or PYTORCH_ALLOC_CONF.
    """

    source: Source
    text: str
    gpu_index: int = 0
    requested_bytes: int | None = None
    requested_text: str = ""
    capacity_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: int | None = None
    other_processes: tuple[tuple[int, int], ...] = ()
    allocated_bytes: int | None = None
    unallocated_bytes: int | None = None
    private_pool_bytes: int | None = None
    allowed_bytes: int | None = None
    variable: str = "PYTORCH_CUDA_ALLOC_CONF"

    @property
    def reserved_bytes(self) -> int | None:
        """All that the allocator holds."""
        if self.allocated_bytes is None or self.unallocated_bytes is None:
            return None
        return self.allocated_bytes + self.unallocated_bytes


_START = re.compile(rf"Tried to allocate {_SIZE}", re.IGNORECASE)
_OLD = re.compile(
    rf"\(GPU (?P<gpu>\d+); (?P<total>{_SIZE}) total capacity; (?P<allocated>{_SIZE}) already allocated; "
    rf"(?P<free>{_SIZE}) free; (?:(?P<allowed>{_SIZE}) allowed; )?(?P<reserved>{_SIZE}) "
    r"(?:reserved in total by PyTorch|cached)"
)
_NEW_CARD = re.compile(
    rf"GPU (?P<gpu>\d+) has a total capaci?ty of (?P<total>{_SIZE}) of which (?P<free>{_SIZE}) is free"
)
_ALLOCATED = re.compile(rf"Of the allocated memory (?P<size>{_SIZE}) is allocated by PyTorch")
_UNALLOCATED = re.compile(rf"(?P<size>{_SIZE}) is reserved by PyTorch but unallocated")
_PRIVATE = re.compile(rf"with (?P<size>{_SIZE}) allocated in private pools")
_ALLOWED = re.compile(rf"(?P<size>{_SIZE}) allowed;")
_THIS_PROCESS = re.compile(rf"this process has (?P<size>{_SIZE}) memory in use", re.IGNORECASE)
_PROCESS = re.compile(rf"Process (?P<pid>\d+) has (?P<size>{_SIZE}) memory in use")
_DRIVER = re.compile(
    r"CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|cuda runtime error \(2\)"
)
_LIBRARY = re.compile(r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUSOLVER_STATUS_ALLOC_FAILED")


def parse(text: str) -> OomMessage:
    """The last out-of-memory message in `text`; a log may hold several, and the last one ended the run.

    Raises:
        InputError: there is none; says what was found instead.
    """
    flat = " ".join(_PREFIX.sub("", line).strip() for line in text.splitlines())
    flat = re.sub(r"\s+", " ", flat)
    starts = [match.start() for match in _START.finditer(flat)]
    if starts:
        return _allocator(flat[starts[-1] : starts[-1] + 3000])
    for pattern, source in ((_LIBRARY, Source.LIBRARY), (_DRIVER, Source.DRIVER)):
        found = list(pattern.finditer(flat))
        if found:
            return OomMessage(source=source, text=found[-1].group())
    raise _nothing(flat)


def _nothing(flat: str) -> InputError:
    hint = 'a message holds "CUDA out of memory. Tried to allocate ..."; give the whole traceback'
    other = re.findall(r"\b(\w+(?:Error|Exception)): (.{0,120})", flat)
    if not flat.strip():
        return InputError("the text is empty", hint=hint, code="no_oom")
    if re.search(r"\bKilled\b|exit code 137|SIGKILL|oom-kill", flat):
        return InputError(
            "the process was killed by the system: host memory ran out, not the GPU's",
            hint="memplan estimate shows host_bytes; fewer data workers and no CPU offload need less",
            code="no_oom",
        )
    if other:
        return InputError(f"no GPU out-of-memory error, but a {other[-1][0]}: {other[-1][1]}", hint=hint, code="no_oom")
    return InputError("no PyTorch out-of-memory error in this text", hint=hint, code="no_oom")


def _allocator(text: str) -> OomMessage:
    requested = _START.match(text)
    assert requested is not None
    text = _one_message(text)
    common = {
        "source": Source.ALLOCATOR,
        "text": text,
        "requested_bytes": _bytes(f"{requested[1]} {requested[2]}"),
        "requested_text": f"{requested[1]} {requested[2]}",
        "variable": "PYTORCH_ALLOC_CONF" if "PYTORCH_ALLOC_CONF" in text else "PYTORCH_CUDA_ALLOC_CONF",
    }
    old = _OLD.search(text)
    if old is not None:
        allocated, reserved = _bytes(old["allocated"]), _bytes(old["reserved"])
        return OomMessage(
            **common,  # type: ignore[arg-type]
            gpu_index=int(old["gpu"]),
            capacity_bytes=_bytes(old["total"]),
            free_bytes=_bytes(old["free"]),
            allocated_bytes=allocated,
            # Two rounded figures: the smaller may come out as the larger one.
            unallocated_bytes=max(0, reserved - allocated),
            allowed_bytes=_bytes(old["allowed"]) if old["allowed"] else None,
        )
    card = _NEW_CARD.search(text)
    own = _sized(_THIS_PROCESS, text)
    processes = [(int(match["pid"]), _bytes(match["size"])) for match in _PROCESS.finditer(text)]
    if own is None and len(processes) == 1:
        own, processes = processes[0][1], []
    return OomMessage(
        **common,  # type: ignore[arg-type]
        gpu_index=int(card["gpu"]) if card else 0,
        capacity_bytes=_bytes(card["total"]) if card else None,
        free_bytes=_bytes(card["free"]) if card else None,
        process_bytes=own,
        other_processes=tuple(processes),
        allocated_bytes=_sized(_ALLOCATED, text),
        unallocated_bytes=_sized(_UNALLOCATED, text),
        private_pool_bytes=_sized(_PRIVATE, text),
        allowed_bytes=_sized(_ALLOWED, text),
    )


def _one_message(text: str) -> str:
    """`text` up to where this message ends: what follows in a log may speak of other sizes."""
    ends = [text.find(mark) for mark in ("During handling of the above", "Traceback (most recent call last)")]
    later = _START.search(text, 20)
    ends.append(later.start() if later else -1)
    found = [end for end in ends if end > 0]
    return text[: min(found)].strip() if found else text[:1500].strip()


def _sized(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return _bytes(found["size"]) if found else None


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE).groups()  # type: ignore[union-attr]
    folded = unit.casefold()
    # format_size counts in powers of 1024 under every name that it ever used.
    return round(float(number) * _UNITS[folded if folded in _UNITS else folded.replace("b", "ib")])


def printed(size_bytes: int) -> str:
    """`size_bytes` as torch's `format_size` prints it: two decimals, binary units, plain bytes up to 1024."""
    if size_bytes <= 1024:
        return f"{size_bytes} bytes"
    for unit, factor in (("KiB", 2**10), ("MiB", 2**20)):
        if size_bytes <= factor * 1024:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes / 2**30:.2f} GiB"
