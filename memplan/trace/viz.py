"""Writes a trace as a snapshot that PyTorch's memory viewer (pytorch.org/memory_viz) opens.

The format is that of `torch.cuda.memory._snapshot` (TypedDicts in torch/cuda/memory.py, 2.13); the reader is
`torch/utils/viz/MemoryViz.js`. It reads pickles of protocol 2 to 4 with plain containers, strings and numbers only.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from memplan.step.allocator import Block, CachingAllocator, SegmentAction
from memplan.trace.result import Storage, TraceResult

# Larger files make the page slow; the smallest storages are left out until the entries fit.
MAX_ENTRIES = 20_000
_PICKLE_PROTOCOL = 4
# torch/profiler/_memory_profiler.py, Category: the words the viewer colours by.
_CATEGORIES = {
    "weights": "PARAMETER",
    "adapters": "PARAMETER",
    "quantization_state": "PARAMETER",
    "buffers": "INPUT",
    "gradients": "GRADIENT",
    "optimizer_states": "OPTIMIZER_STATE",
    "activations": "ACTIVATION",
    "logits_and_loss": "ACTIVATION",
    "temporaries": "TEMPORARY",
}


def snapshot(
    result: TraceResult, *, expandable_segments: bool = False, max_entries: int = MAX_ENTRIES
) -> dict[str, Any]:
    """The trace as a snapshot: one entry an event in `device_traces`, the final state in `segments`.

    Addresses and segment events come from the allocator model; allocations below a threshold are replayed but not
    listed, so that at most `max_entries` entries remain.
    """
    trace: list[dict[str, Any]] = []
    segments: dict[int, int] = {}

    def on_segment(action: SegmentAction, address: int, size_bytes: int) -> None:
        trace.append(_entry(action, address, size_bytes, [_frame("segment")]))
        if action in ("segment_alloc", "segment_map"):
            segments[address] = size_bytes
        else:
            segments.pop(address, None)

    # The viewer throws where entries have categories and none of them is "unknown".
    marker = [_entry("alloc", 0, 512, [_frame("start of the trace")], "unknown")]
    marker += [
        _entry(action, 0, 512, [_frame("start of the trace")]) for action in ("free_requested", "free_completed")
    ]
    allocator = CachingAllocator(expandable_segments=expandable_segments, on_segment=on_segment)
    smallest = _threshold_bytes(result, max_entries)
    held: dict[int, Block] = {}
    for event in result.events:
        storage = result.storages[abs(event)]
        listed = storage.size_bytes >= smallest
        if event > 0:
            block = allocator.malloc(storage.size_bytes)
            held[event] = block
            if listed:
                category = _CATEGORIES.get(storage.component, "unknown").lower()
                trace.append(_entry("alloc", block.address, storage.block_bytes, _frames(storage), category))
            continue
        block = held.pop(-event)
        address = block.address
        allocator.free(block, storage.size_bytes)
        if listed:
            for action in ("free_requested", "free_completed"):
                trace.append(_entry(action, address, storage.block_bytes, _frames(storage)))
    alive = [(block, result.storages[storage_id]) for storage_id, block in held.items()]
    return {
        "device_traces": [marker + trace],
        "segments": _segments(segments, alive, expandable=expandable_segments),
        "allocator_settings": {"expandable_segments": expandable_segments},
    }


def write_snapshot(result: TraceResult, path: Path, *, expandable_segments: bool = False) -> None:
    """Writes `snapshot(result)` as a pickle that the viewer can read."""
    data = pickle.dumps(snapshot(result, expandable_segments=expandable_segments), protocol=_PICKLE_PROTOCOL)
    path.write_bytes(data)


def _threshold_bytes(result: TraceResult, max_entries: int) -> int:
    sizes = sorted((result.storages[event].size_bytes for event in result.events if event > 0), reverse=True)
    # One entry for the birth and two for the death.
    allowed = max_entries // 3
    return sizes[allowed] + 1 if len(sizes) > allowed else 0


def _entry(
    action: str, address: int, size_bytes: int, frames: list[dict[str, Any]], category: str | None = None
) -> dict[str, Any]:
    entry = {"action": action, "addr": address, "size": size_bytes, "stream": 0, "frames": frames}
    if category is not None:
        entry["category"] = category
    return entry


def _frame(name: str) -> dict[str, Any]:
    return {"filename": "memplan trace", "line": 0, "name": name}


def _frames(storage: Storage) -> list[dict[str, Any]]:
    where = storage.name or storage.module or "loss"
    shape = "x".join(map(str, storage.shape))
    return [_frame(f"{where}: {storage.op} [{shape}] {storage.dtype} ({storage.component})")]


def _segments(sizes: dict[int, int], alive: list[tuple[Block, Storage]], *, expandable: bool) -> list[dict[str, Any]]:
    """Segments at the end, tiled by their blocks; adjacent pieces of an expandable segment count as one."""
    merged: list[list[int]] = []
    for address, size_bytes in sorted(sizes.items()):
        if expandable and merged and merged[-1][0] + merged[-1][1] == address:
            merged[-1][1] += size_bytes
        else:
            merged.append([address, size_bytes])
    ordered = sorted(alive, key=lambda entry: entry[0].address)
    position = 0
    found = []
    for address, size_bytes in merged:
        blocks: list[dict[str, Any]] = []
        cursor = address
        while position < len(ordered) and ordered[position][0].address < address + size_bytes:
            block, storage = ordered[position]
            if block.address > cursor:
                blocks.append(_block(cursor, block.address - cursor, "inactive", []))
            blocks.append(_block(block.address, block.size_bytes, "active_allocated", _frames(storage)))
            cursor = block.address + block.size_bytes
            position += 1
        if cursor < address + size_bytes:
            blocks.append(_block(cursor, address + size_bytes - cursor, "inactive", []))
        active = sum(entry["size"] for entry in blocks if entry["state"] == "active_allocated")
        found.append(
            {
                "device": 0,
                "address": address,
                "total_size": size_bytes,
                "stream": 0,
                "segment_type": "small" if size_bytes <= 2 * 2**20 else "large",
                "segment_pool_id": (0, 0),
                "allocated_size": active,
                "active_size": active,
                "requested_size": active,
                "is_expandable": expandable,
                "frames": [],
                "blocks": blocks,
            }
        )
    return found


def _block(address: int, size_bytes: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {"address": address, "size": size_bytes, "requested_size": size_bytes, "state": state, "frames": frames}
