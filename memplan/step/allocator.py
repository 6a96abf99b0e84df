"""PyTorch's CUDA caching allocator as a model: from births and deaths of storages to blocks and segments.

Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.13, with the default configuration (`max_split_size_mb`,
`roundup_power2_divisions` and `garbage_collection_threshold` unset), with and without `expandable_segments`. Each CUDA stream
has free blocks of its own (`BlockComparatorSize`). The names of the functions quoted in the docstrings are those of that file.

What it answers that a sum cannot: `memory_allocated` counts *blocks*, and a large block keeps a remainder of up to
1 MiB unsplit; `memory_reserved` counts *segments*, and depends on the order of events; and whether a run survives in a
given capacity, where cached segments are released and the allocation is tried again before the run fails. A run of events is
played by `memplan.step.allocator_run`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from memplan.units import BLOCK_BYTES, MIB, round_to_block

# kSmallSize, kSmallBuffer, kMinLargeAlloc, kLargeBuffer, kRoundLarge.
SMALL_ALLOCATION_BYTES: Final = MIB
SMALL_SEGMENT_BYTES: Final = 2 * MIB
MIN_OWN_SEGMENT_BYTES: Final = 10 * MIB
LARGE_SEGMENT_BYTES: Final = 20 * MIB
SEGMENT_ROUNDING_BYTES: Final = 2 * MIB

SegmentAction = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]


class AllocatorOutOfMemoryError(Exception):
    """No segment could be had for an allocation; `replay` turns it into `OutOfMemory`."""


class Block:
    """A piece of a segment; neighbours in the segment are linked. `mapped` is false for unused address space."""

    __slots__ = ("address", "allocated", "expandable", "mapped", "next", "pool", "prev", "size_bytes")

    def __init__(self, address: int, size_bytes: int, pool: Pool, *, expandable: bool = False, mapped: bool = True):
        self.address = address
        self.size_bytes = size_bytes
        self.pool = pool
        self.prev: Block | None = None
        self.next: Block | None = None
        self.allocated = False
        self.expandable = expandable
        self.mapped = mapped


@dataclass(slots=True)
class Pool:
    """The free blocks of small or of large segments, ordered by (size, address) as in `BlockComparatorSize`."""

    is_small: bool
    free: list[tuple[int, int]] = field(default_factory=list)
    by_address: dict[int, Block] = field(default_factory=dict)
    # Address-ordered, as in BlockComparatorAddress.
    unmapped: list[tuple[int, Block]] = field(default_factory=list)

    @property
    def segment_bytes(self) -> int:
        """The granularity in which an expandable segment of this pool grows."""
        return SMALL_SEGMENT_BYTES if self.is_small else LARGE_SEGMENT_BYTES

    def insert(self, block: Block) -> None:
        """Adds a free block."""
        insort(self.free, (block.size_bytes, block.address))
        self.by_address[block.address] = block

    def remove(self, block: Block) -> None:
        """Takes a free block out."""
        index = bisect_left(self.free, (block.size_bytes, block.address))
        del self.free[index]
        del self.by_address[block.address]


class CachingAllocator:
    """The allocator's state. `malloc` and `free` are the whole interface; sizes are bytes.

    Args:
        expandable_segments: `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
        capacity_bytes: what all segments together may take; None for no limit.
        on_segment: called for every change of reserved memory with (action, address, size in bytes).
    """

    # An expandable segment reserves address space for 9/8 of the device (ExpandableSegment's constructor); a number
    # beyond any device serves as well. A multiple of both granules, so that granules are counted from address 0.
    _ADDRESS_SPACE_BYTES: Final = LARGE_SEGMENT_BYTES * 2**20

    def __init__(
        self,
        *,
        expandable_segments: bool = False,
        capacity_bytes: int | None = None,
        on_segment: Callable[[SegmentAction, int, int], None] | None = None,
    ) -> None:
        self.expandable_segments = expandable_segments
        self.capacity_bytes = capacity_bytes
        self.on_segment = on_segment
        self.live_bytes = 0
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.alloc_retries = 0
        self.segments = 0
        self._pools: dict[int, tuple[Pool, Pool]] = {}
        self._pending: list[Block] = []
        self._next_address = self._ADDRESS_SPACE_BYTES

    def malloc(self, size_bytes: int, stream: int = 0) -> Block:
        """Serves an allocation of `size_bytes` > 0 by a CUDA stream.

        Raises:
            AllocatorOutOfMemoryError: the capacity does not allow it, even with everything cached released.
        """
        rounded = round_to_block(size_bytes)
        small, large = self._pools_of(stream)
        pool = small if rounded <= SMALL_ALLOCATION_BYTES else large
        block = self._get_free_block(pool, rounded) or self._alloc_block(pool, rounded)
        if block is None:
            self.alloc_retries += 1
            self.release_cached_blocks()
            block = self._alloc_block(pool, rounded)
            if block is None:
                raise AllocatorOutOfMemoryError
        if self._should_split(block, rounded):
            self._split(block, rounded)
        block.allocated = True
        self.allocated_bytes += block.size_bytes
        self.live_bytes += rounded
        return block

    def free(self, block: Block, size_bytes: int, *, later: bool = False) -> None:
        """Returns a block to its pool, merged with its free neighbours (`free_block`, `try_merge_blocks`).

        Where that must wait for another stream (`insert_events`), it happens when the streams are synchronized: how far the
        device is behind the program is not known, and no earlier is the bound.
        """
        self.allocated_bytes -= block.size_bytes
        self.live_bytes -= round_to_block(size_bytes)
        if later:
            self._pending.append(block)
        else:
            self._return(block)

    def synchronize(self) -> None:
        """All streams' work is done (`process_events`)."""
        for block in self._pending:
            self._return(block)
        self._pending.clear()

    def _return(self, block: Block) -> None:
        block.allocated = False
        self._merge_neighbours(block)
        block.pool.insert(block)

    def _pools_of(self, stream: int) -> tuple[Pool, Pool]:
        if stream not in self._pools:
            self._pools[stream] = Pool(is_small=True), Pool(is_small=False)
        return self._pools[stream]

    def release_cached_blocks(self) -> None:
        """Gives every wholly free segment back to the driver, as `torch.cuda.empty_cache()` does."""
        self.synchronize()
        for pool in [pool for pools in self._pools.values() for pool in pools]:
            for block in list(pool.by_address.values()):
                if block.expandable:
                    self._unmap(block)
                elif block.prev is None and block.next is None:
                    pool.remove(block)
                    self.segments -= 1
                    self._reserve(-block.size_bytes, "segment_free", block.address)

    def _reserve(self, change_bytes: int, action: SegmentAction, address: int) -> None:
        self.reserved_bytes += change_bytes
        if self.on_segment is not None:
            self.on_segment(action, address, abs(change_bytes))

    def _fits(self, more_bytes: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + more_bytes <= self.capacity_bytes

    def _get_free_block(self, pool: Pool, size_bytes: int) -> Block | None:
        """`get_free_block`: the smallest free block that is large enough, the lowest address among equals."""
        free = pool.free
        index = bisect_left(free, (size_bytes, -1))
        if index == len(free):
            return None
        block = pool.by_address[free[index][1]]
        if block.expandable:
            # A block at the growing end counts with the size that it can grow to.
            while index + 1 < len(free):
                following = pool.by_address[free[index + 1][1]]
                if not block.expandable or _grown_bytes(following) >= _grown_bytes(block):
                    break
                index += 1
                block = following
        pool.remove(block)
        return block

    def _alloc_block(self, pool: Pool, size_bytes: int) -> Block | None:
        """`alloc_block`: a new segment, or more of an expandable one; None where the capacity does not allow it."""
        if self.expandable_segments:
            return self._alloc_expandable(pool, size_bytes)
        segment_bytes = segment_size_bytes(size_bytes)
        if not self._fits(segment_bytes):
            return None
        block = Block(self._next_address, segment_bytes, pool)
        self._next_address += segment_bytes
        self.segments += 1
        self._reserve(segment_bytes, "segment_alloc", block.address)
        return block

    def _should_split(self, block: Block, size_bytes: int) -> bool:
        """`should_split`: small and expandable segments are cut to 512 bytes, others leave up to 1 MiB unsplit."""
        remaining = block.size_bytes - size_bytes
        if block.pool.is_small or self.expandable_segments:
            return remaining >= BLOCK_BYTES
        return remaining > SMALL_ALLOCATION_BYTES

    def _split(self, block: Block, size_bytes: int) -> None:
        rest = Block(block.address + size_bytes, block.size_bytes - size_bytes, block.pool, expandable=block.expandable)
        _link_after(block, rest)
        block.size_bytes = size_bytes
        block.pool.insert(rest)

    def _merge_neighbours(self, block: Block) -> None:
        previous, following = block.prev, block.next
        if previous is not None and not previous.allocated and previous.mapped == block.mapped:
            _forget(previous)
            block.address = previous.address
            block.size_bytes += previous.size_bytes
            block.prev = previous.prev
            if block.prev is not None:
                block.prev.next = block
        if following is not None and not following.allocated and following.mapped == block.mapped:
            _forget(following)
            block.size_bytes += following.size_bytes
            block.next = following.next
            if block.next is not None:
                block.next.prev = block

    def _alloc_expandable(self, pool: Pool, size_bytes: int) -> Block | None:
        """`try_allocate_expandable_block`: maps as many granules as the block at the growing end lacks."""
        block = self._find_expandable(pool, size_bytes)
        if not block.mapped and not self._map(block, min(block.size_bytes, size_bytes)):
            return None
        while block.size_bytes < size_bytes:
            following = block.next
            assert following is not None
            if not self._map(following, min(size_bytes - block.size_bytes, following.size_bytes)):
                return None
            block = following
        pool.remove(block)
        return block

    def _find_expandable(self, pool: Pool, size_bytes: int) -> Block:
        """`find_expandable_block`: the lowest unmapped space with room, with a free block before it if there is one."""
        for _, unmapped in pool.unmapped:
            start = unmapped
            if start.prev is not None and not start.prev.allocated:
                start = start.prev
            room, walk = 0, start
            while room < size_bytes and not walk.allocated:
                room += walk.size_bytes
                if walk.next is None:
                    break
                walk = walk.next
            if room >= size_bytes:
                return start
        block = Block(self._next_address, self._ADDRESS_SPACE_BYTES, pool, expandable=True, mapped=False)
        self._next_address += self._ADDRESS_SPACE_BYTES
        self.segments += 1
        insort(pool.unmapped, (block.address, block), key=_by_address)
        return block

    def _map(self, block: Block, size_bytes: int) -> bool:
        """`map_block`: maps whole granules from the start of an unmapped block and merges with its neighbours."""
        granule = block.pool.segment_bytes
        mapped_bytes = min(-(-size_bytes // granule) * granule, block.size_bytes)
        if not self._fits(mapped_bytes):
            return False
        pool = block.pool
        _forget(block)
        block.mapped = True
        if mapped_bytes < block.size_bytes:
            rest = Block(
                block.address + mapped_bytes, block.size_bytes - mapped_bytes, pool, expandable=True, mapped=False
            )
            _link_after(block, rest)
            insort(pool.unmapped, (rest.address, rest), key=_by_address)
            block.size_bytes = mapped_bytes
        self._reserve(mapped_bytes, "segment_map", block.address)
        self._merge_neighbours(block)
        pool.insert(block)
        return True

    def _unmap(self, block: Block) -> None:
        """`unmap_block`: unmaps the whole granules inside a free block; what sticks out on either side stays mapped."""
        pool, granule = block.pool, block.pool.segment_bytes
        start = -(-block.address // granule) * granule
        end = (block.address + block.size_bytes) // granule * granule
        if end <= start:
            return
        pool.remove(block)
        before, after = start - block.address, block.address + block.size_bytes - end
        if before:
            head = Block(block.address, before, pool, expandable=True)
            head.prev, head.next = block.prev, block
            if block.prev is not None:
                block.prev.next = head
            block.prev = head
            pool.insert(head)
        if after:
            tail = Block(end, after, pool, expandable=True)
            _link_after(block, tail)
            pool.insert(tail)
        block.address, block.size_bytes, block.mapped = start, end - start, False
        self._reserve(-block.size_bytes, "segment_unmap", start)
        self._merge_neighbours(block)
        insort(pool.unmapped, (block.address, block), key=_by_address)


def _by_address(entry: tuple[int, Block]) -> int:
    return entry[0]


def _grown_bytes(block: Block) -> int:
    following = block.next
    return block.size_bytes + (following.size_bytes if following is not None and not following.mapped else 0)


def _link_after(block: Block, rest: Block) -> None:
    rest.prev, rest.next = block, block.next
    if block.next is not None:
        block.next.prev = rest
    block.next = rest


def _forget(block: Block) -> None:
    """Takes a block that is not in use out of whichever list holds it."""
    if block.mapped:
        block.pool.remove(block)
    else:
        unmapped = block.pool.unmapped
        del unmapped[bisect_left(unmapped, block.address, key=_by_address)]


def segment_size_bytes(size_bytes: int) -> int:
    """`get_allocation_size`: the segment requested from the driver for an allocation of a rounded size."""
    if size_bytes <= SMALL_ALLOCATION_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < MIN_OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size_bytes // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES
