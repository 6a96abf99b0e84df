"""Messages of every form that PyTorch has printed, and what their figures mean."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from memplan.errors import InputError
from memplan.oom.cause import Cause, diagnose, other_bytes
from memplan.oom.message import Source, parse, printed
from memplan.units import GIB, MIB

MESSAGES = tomllib.loads(Path(__file__).with_name("messages.toml").read_text(encoding="utf-8"))["message"]


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: entry["source"][:40])
def test_every_figure_is_read(entry: dict[str, Any]) -> None:
    found = parse(entry["text"])
    assert found.source is Source.ALLOCATOR
    assert found.requested_text == entry["requested"]
    assert found.gpu_index == entry.get("gpu", 0)
    assert found.variable == entry.get("variable", "PYTORCH_CUDA_ALLOC_CONF")
    for key, field in (
        ("capacity", "capacity_bytes"),
        ("free", "free_bytes"),
        ("process", "process_bytes"),
        ("allocated", "allocated_bytes"),
        ("unallocated", "unallocated_bytes"),
    ):
        if key in entry:
            assert printed(getattr(found, field)) == entry[key], key


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: entry["source"][:40])
def test_the_cause_follows_from_the_figures(entry: dict[str, Any]) -> None:
    message = parse(entry["text"])
    found = diagnose(message)
    assert found.cause == entry["cause"]
    if found.missing_bytes:
        assert found.cause in (Cause.LACK, Cause.LARGER_THAN_CARD, Cause.OTHER_PROCESSES)
    if "others" in entry:
        assert other_bytes(message) == entry["others"]


NEW = (
    "CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 80.00 GiB of which {free} is free. "
    "Including non-PyTorch memory, this process has {own} memory in use. {allowed}Of the allocated memory {used} is "
    "allocated by PyTorch, {graphs}and {unused} is reserved by PyTorch but unallocated. See documentation"
)


def message(**figures: str) -> str:
    plain = {"asked": "4.00 GiB", "free": "1.00 GiB", "own": "79.00 GiB", "used": "78.00 GiB", "unused": "512.00 MiB",
             "allowed": "", "graphs": ""}  # fmt: skip
    return NEW.format(**{**plain, **figures})


@pytest.mark.parametrize(
    ("figures", "cause", "missing"),
    [
        ({}, Cause.LACK, 4 * GIB - GIB - 512 * MIB),
        ({"unused": "8.00 GiB", "used": "70.00 GiB"}, Cause.FRAGMENTATION, 0),
        ({"asked": "90.00 GiB"}, Cause.LARGER_THAN_CARD, 90 * GIB - GIB - 512 * MIB),
        ({"own": "49.00 GiB", "used": "48.00 GiB"}, Cause.OTHER_PROCESSES, 4 * GIB - GIB - 512 * MIB),
        (
            {"free": "60.00 GiB", "own": "19.50 GiB", "used": "18.00 GiB", "allowed": "20.00 GiB allowed; "},
            Cause.LIMIT,
            0,
        ),
        ({"free": "60.00 GiB", "own": "19.50 GiB", "used": "18.00 GiB"}, Cause.REFUSED, 0),
    ],
)
def test_causes_by_hand(figures: dict[str, str], cause: Cause, missing: int) -> None:
    found = diagnose(parse(message(**figures)))
    assert (found.cause, found.missing_bytes) == (cause, missing)


def test_a_fraction_and_private_pools() -> None:
    found = parse(
        message(allowed="16.00 GiB allowed; ", graphs="with 3.00 GiB allocated in private pools (e.g., CUDA Graphs), ")
    )
    assert (found.allowed_bytes, found.private_pool_bytes) == (16 * GIB, 3 * GIB)
    old = parse(
        "Tried to allocate 20.00 MiB (GPU 0; 10.00 GiB total capacity; 1.00 GiB already allocated; 9.00 GiB free; "
        "1.50 GiB allowed; 1.25 GiB reserved in total by PyTorch)"
    )
    assert (old.allowed_bytes, old.unallocated_bytes) == (1536 * MIB, 256 * MIB)


def test_the_last_message_of_a_log_counts() -> None:
    text = f"{message(asked='1.00 GiB')}\nDuring handling of the above exception\n{message(asked='2.00 GiB')}"
    assert parse(text).requested_bytes == 2 * GIB


def test_prefixes_and_wrapped_lines() -> None:
    words = message().split(" ")
    lines = [" ".join(words[index : index + 7]) for index in range(0, len(words), 7)]
    assert parse("\n".join(f"[rank0]: {line}" for line in lines)).allocated_bytes == 78 * GIB


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be", Source.DRIVER),
        ("RuntimeError: cuda runtime error (2) : out of memory at /pytorch/aten/src/THC", Source.DRIVER),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Source.LIBRARY),
    ],
)
def test_errors_outside_the_allocator(text: str, source: Source) -> None:
    found = parse(text)
    assert found.source is source
    assert diagnose(found).cause is Cause.OUTSIDE_ALLOCATOR


def test_a_message_that_was_cut_off() -> None:
    found = parse("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.00 GiB of wh")
    assert found.requested_bytes == 2 * GIB
    assert diagnose(found).cause is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("all went well", "no PyTorch out-of-memory error"),
        ("ValueError: bad shape", "a ValueError: bad shape"),
        ("slurmstepd: error: Detected 1 oom-kill event(s)\nKilled", "host memory"),
    ],
)
def test_texts_without_an_error_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse(text)
    assert caught.value.code == "no_oom"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (512, "512 bytes"),
        (2 * MIB, "2.00 MiB"),
        (4202692608, "3.91 GiB"),
        (1024 * MIB, "1024.00 MiB"),
        (1025 * MIB, "1.00 GiB"),
    ],
)
def test_sizes_as_torch_prints_them(size: int, text: str) -> None:
    assert printed(size) == text
