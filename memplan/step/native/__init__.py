"""The allocator's replay in C, where it was compiled when memplan was installed; the Python model answers otherwise.

Both give the same numbers (tests/step/test_native.py); this one is some twenty times faster. `MEMPLAN_NATIVE=0` in the
environment turns it off.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

LIBRARY = "_replay.so"
PHASE_FIGURES = 6
# The number in the function's name goes up with every change of what it computes: a library of an older source is not asked.


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None where there is none."""
    path = Path(__file__).with_name(LIBRARY)
    if os.environ.get("MEMPLAN_NATIVE") == "0" or not path.is_file():
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        play = loaded.memplan_play_events_2
    except (OSError, AttributeError):  # compiled for another machine, or from an older source
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    play.argtypes = [number, pointer, pointer, pointer, number, pointer, number, ctypes.c_int, pointer]
    play.restype = ctypes.c_int
    return loaded


def replay(
    keys: array[int],
    sizes: array[int],
    table: Sequence[int],
    n_keys: int,
    begins: Sequence[int],
    *,
    expandable_segments: bool = False,
) -> tuple[int, list[list[int]]]:
    """Segments at the end, and for each phase the highest live, allocated and reserved bytes and those at its end.

    Args:
        keys: a number for the storage of each event, from 1, typecode "i"; the free of 0 is a call of
            `torch.cuda.empty_cache()`.
        sizes: an index into `table` for an allocation, -1 for a free, typecode "i".
        table: bytes, multiples of 512.
        n_keys: one more than the largest key.
        begins: the first event of each phase.
        expandable_segments: the allocator's mode.

    Raises:
        MemoryError: the library could not allocate its own tables.
    """
    loaded = library()
    assert loaded is not None, "ask library() first"
    table_array, begins_array = array("q", table), array("q", begins)
    out = array("q", bytes(8 * (1 + PHASE_FIGURES * len(begins))))
    failed = loaded.memplan_play_events_2(
        len(keys), *(entry.buffer_info()[0] for entry in (keys, sizes, table_array)), n_keys,
        begins_array.buffer_info()[0], len(begins), int(expandable_segments), out.buffer_info()[0],
    )  # fmt: skip
    if failed:
        raise MemoryError("the allocator's replay ran out of memory")
    figures = list(out)
    rows = range(1, len(figures), PHASE_FIGURES)
    return figures[0], [figures[start : start + PHASE_FIGURES] for start in rows]
