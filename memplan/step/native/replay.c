/* The caching allocator, event by event: the same model as memplan/step/allocator.py, for speed.
 *
 * Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.13, one stream, with and without expandable segments, no capacity: memory
 * goes back to the driver only where the program asks for it.
 * The Python model is the reference; tests/step/test_native.py holds the two equal on random and on real runs.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((int64_t)1 << 20)
#define BLOCK 512
#define SMALL_ALLOCATION MIB       /* kSmallSize */
#define SMALL_SEGMENT (2 * MIB)    /* kSmallBuffer */
#define MIN_OWN_SEGMENT (10 * MIB) /* kMinLargeAlloc */
#define LARGE_SEGMENT (20 * MIB)   /* kLargeBuffer */
#define SEGMENT_ROUNDING (2 * MIB) /* kRoundLarge */
#define NONE (-1)
/* Address space of an expandable segment, beyond any device; a multiple of both granules, as in the Python model. */
#define ADDRESS_SPACE (LARGE_SEGMENT * ((int64_t)1 << 20))

typedef struct {
    int64_t address, size;
    int32_t prev, next;
    uint8_t small, allocated, mapped;
} Block;

typedef struct {
    int64_t size, address;
    int32_t block;
} Free;

typedef struct {
    Free *entries; /* free blocks, ordered by (size, address) as in BlockComparatorSize */
    int64_t count, room;
    int32_t *unmapped; /* of expandable segments, ordered by address */
    int64_t unmapped_count, unmapped_room;
} Pool;

typedef struct {
    Block *blocks;
    int32_t *unused; /* numbers of merged blocks, to be used again */
    int64_t count, room, unused_count, unused_room;
    Pool pools[2]; /* large, small */
    uint8_t expandable;
    int64_t next_address, segments, live, allocated, reserved;
} Allocator;

static int grow(void **entries, int64_t *room, int64_t count, size_t width) {
    if (count < *room) return 1;
    int64_t wanted = *room ? *room * 2 : 1024;
    void *larger = realloc(*entries, (size_t)wanted * width);
    if (!larger) return 0;
    *entries = larger;
    *room = wanted;
    return 1;
}

static int is_before(const Free *entry, const Free *other) {
    return entry->size < other->size || (entry->size == other->size && entry->address < other->address);
}

/* The first entry from `low` to `high` that is not less than (size, address), or `high`. */
static int64_t between(const Pool *pool, int64_t low, int64_t high, int64_t size, int64_t address) {
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const Free *entry = &pool->entries[middle];
        if (entry->size < size || (entry->size == size && entry->address < address)) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int64_t place(const Pool *pool, int64_t size, int64_t address) {
    return between(pool, 0, pool->count, size, address);
}

static int insert(Allocator *a, int32_t number) {
    const Block *block = &a->blocks[number];
    Pool *pool = &a->pools[block->small];
    if (!grow((void **)&pool->entries, &pool->room, pool->count, sizeof(Free))) return 0;
    int64_t at = place(pool, block->size, block->address);
    memmove(&pool->entries[at + 1], &pool->entries[at], (size_t)(pool->count - at) * sizeof(Free));
    pool->entries[at] = (Free){block->size, block->address, number};
    pool->count++;
    return 1;
}

/* Puts `number` in place of the entry at `at`: the entries between the two places move, and no others. */
static void exchange(Allocator *a, Pool *pool, int64_t at, int32_t number) {
    const Block *block = &a->blocks[number];
    Free *entries = pool->entries, entry = {block->size, block->address, number};
    int64_t to = at;
    if (at > 0 && is_before(&entry, &entries[at - 1])) {
        to = between(pool, 0, at - 1, entry.size, entry.address);
        memmove(&entries[to + 1], &entries[to], (size_t)(at - to) * sizeof(Free));
    } else if (at + 1 < pool->count && is_before(&entries[at + 1], &entry)) {
        to = between(pool, at + 2, pool->count, entry.size, entry.address) - 1;
        memmove(&entries[at], &entries[at + 1], (size_t)(to - at) * sizeof(Free));
    }
    entries[to] = entry;
}

static void take(Pool *pool, int64_t at) {
    pool->count--;
    memmove(&pool->entries[at], &pool->entries[at + 1], (size_t)(pool->count - at) * sizeof(Free));
}

static int32_t new_block(Allocator *a, int64_t address, int64_t size, uint8_t small) {
    int32_t number;
    if (a->unused_count) number = a->unused[--a->unused_count];
    else {
        if (!grow((void **)&a->blocks, &a->room, a->count, sizeof(Block))) return NONE;
        number = (int32_t)a->count++;
    }
    a->blocks[number] = (Block){address, size, NONE, NONE, small, 0, 1};
    return number;
}

static int64_t segment_size(int64_t size) { /* get_allocation_size */
    if (size <= SMALL_ALLOCATION) return SMALL_SEGMENT;
    if (size < MIN_OWN_SEGMENT) return LARGE_SEGMENT;
    return (size + SEGMENT_ROUNDING - 1) / SEGMENT_ROUNDING * SEGMENT_ROUNDING;
}

static int retire(Allocator *a, int32_t number) { /* the number of a block that is no more may be used again */
    if (!grow((void **)&a->unused, &a->unused_room, a->unused_count, sizeof(int32_t))) return 0;
    a->unused[a->unused_count++] = number;
    return 1;
}

static int is_free(const Allocator *a, int32_t number) {
    return number != NONE && !a->blocks[number].allocated && a->blocks[number].mapped;
}

static int merge(Allocator *a, int32_t number) { /* try_merge_blocks, of a mapped block, and into the pool with it */
    Block *block = &a->blocks[number];
    Pool *pool = &a->pools[block->small];
    int32_t before = block->prev, after = block->next;
    int64_t at = NONE; /* of a neighbour's entry, which becomes the whole's */
    if (is_free(a, before)) {
        const Block *other = &a->blocks[before];
        at = place(pool, other->size, other->address);
        block->address = other->address;
        block->size += other->size;
        block->prev = other->prev;
        if (block->prev != NONE) a->blocks[block->prev].next = number;
        if (!retire(a, before)) return 0;
    }
    if (is_free(a, after)) {
        const Block *other = &a->blocks[after];
        int64_t second = place(pool, other->size, other->address);
        block->size += other->size;
        block->next = other->next;
        if (block->next != NONE) a->blocks[block->next].prev = number;
        if (!retire(a, after)) return 0;
        if (at == NONE) at = second;
        else {
            take(pool, second);
            if (second < at) at--;
        }
    }
    if (at == NONE) return insert(a, number);
    exchange(a, pool, at, number);
    return 1;
}

static int32_t cut_after(Allocator *a, int32_t number, int64_t size) { /* what is left of a block behind its first `size` */
    const Block *whole = &a->blocks[number];
    int32_t cut = new_block(a, whole->address + size, whole->size - size, whole->small);
    if (cut == NONE) return NONE;
    Block *block = &a->blocks[number];
    a->blocks[cut].prev = number;
    a->blocks[cut].next = block->next;
    if (block->next != NONE) a->blocks[block->next].prev = cut;
    block->next = cut;
    block->size = size;
    return cut;
}

static int64_t unmapped_place(const Allocator *a, const Pool *pool, int64_t address) {
    int64_t at = 0; /* few: what was emptied between blocks in use, and the unused end */
    while (at < pool->unmapped_count && a->blocks[pool->unmapped[at]].address < address) at++;
    return at;
}

static int insert_unmapped(Allocator *a, int32_t number) {
    Pool *pool = &a->pools[a->blocks[number].small];
    if (!grow((void **)&pool->unmapped, &pool->unmapped_room, pool->unmapped_count, sizeof(int32_t))) return 0;
    int64_t at = unmapped_place(a, pool, a->blocks[number].address);
    memmove(&pool->unmapped[at + 1], &pool->unmapped[at], (size_t)(pool->unmapped_count - at) * sizeof(int32_t));
    pool->unmapped[at] = number;
    pool->unmapped_count++;
    return 1;
}

static void take_unmapped(Allocator *a, int32_t number) {
    Pool *pool = &a->pools[a->blocks[number].small];
    int64_t at = unmapped_place(a, pool, a->blocks[number].address);
    pool->unmapped_count--;
    memmove(&pool->unmapped[at], &pool->unmapped[at + 1], (size_t)(pool->unmapped_count - at) * sizeof(int32_t));
}

static int64_t granule_of(uint8_t small) { return small ? SMALL_SEGMENT : LARGE_SEGMENT; }

static int map_block(Allocator *a, int32_t number, int64_t size) { /* whole granules from the start of an unmapped block */
    int64_t granule = granule_of(a->blocks[number].small);
    int64_t mapped = (size + granule - 1) / granule * granule;
    take_unmapped(a, number);
    if (mapped < a->blocks[number].size) {
        int32_t rest = cut_after(a, number, mapped);
        if (rest == NONE) return 0;
        a->blocks[rest].mapped = 0;
        if (!insert_unmapped(a, rest)) return 0;
    } else mapped = a->blocks[number].size;
    a->blocks[number].mapped = 1;
    a->reserved += mapped;
    return merge(a, number);
}

static int is_unmapped(const Allocator *a, int32_t number) { return number != NONE && !a->blocks[number].mapped; }

static int unmap_block(Allocator *a, int32_t number) { /* the whole granules inside a free block; its ends stay mapped */
    Block whole = a->blocks[number];
    Pool *pool = &a->pools[whole.small];
    int64_t granule = granule_of(whole.small), past = whole.address + whole.size;
    int64_t start = (whole.address + granule - 1) / granule * granule, end = past / granule * granule;
    if (end <= start) return 1;
    take(pool, place(pool, whole.size, whole.address));
    if (start > whole.address) {
        int32_t head = new_block(a, whole.address, start - whole.address, whole.small);
        if (head == NONE) return 0;
        a->blocks[head].prev = whole.prev;
        a->blocks[head].next = number;
        if (whole.prev != NONE) a->blocks[whole.prev].next = head;
        a->blocks[number].prev = head;
        a->blocks[number].address = start;
        a->blocks[number].size = past - start;
        if (!insert(a, head)) return 0;
    }
    if (past > end) {
        int32_t tail = cut_after(a, number, end - start);
        if (tail == NONE || !insert(a, tail)) return 0;
    }
    a->reserved -= end - start;
    Block *block = &a->blocks[number];
    block->mapped = 0;
    if (is_unmapped(a, block->prev)) {
        int32_t before = block->prev;
        take_unmapped(a, before);
        block->address = a->blocks[before].address;
        block->size += a->blocks[before].size;
        block->prev = a->blocks[before].prev;
        if (block->prev != NONE) a->blocks[block->prev].next = number;
        if (!retire(a, before)) return 0;
    }
    if (is_unmapped(a, block->next)) {
        int32_t after = block->next;
        take_unmapped(a, after);
        block->size += a->blocks[after].size;
        block->next = a->blocks[after].next;
        if (block->next != NONE) a->blocks[block->next].prev = number;
        if (!retire(a, after)) return 0;
    }
    return insert_unmapped(a, number);
}

/* find_expandable_block: the lowest unmapped space with room, with a free block before it if there is one. */
static int32_t find_expandable(Allocator *a, int64_t size, uint8_t small) {
    Pool *pool = &a->pools[small];
    for (int64_t at = 0; at < pool->unmapped_count; at++) {
        int32_t start = pool->unmapped[at];
        if (is_free(a, a->blocks[start].prev)) start = a->blocks[start].prev;
        int64_t room = 0;
        for (int32_t walk = start; walk != NONE && !a->blocks[walk].allocated && room < size; walk = a->blocks[walk].next)
            room += a->blocks[walk].size;
        if (room >= size) return start;
    }
    int32_t number = new_block(a, a->next_address, ADDRESS_SPACE, small);
    if (number == NONE) return NONE;
    a->blocks[number].mapped = 0;
    a->next_address += ADDRESS_SPACE;
    a->segments++;
    return insert_unmapped(a, number) ? number : NONE;
}

static int64_t grow_expandable(Allocator *a, int64_t size, uint8_t small) { /* try_allocate_expandable_block; a place too */
    int32_t number = find_expandable(a, size, small);
    if (number == NONE || (!a->blocks[number].mapped && !map_block(a, number, size))) return NONE;
    while (a->blocks[number].size < size) {
        int32_t after = a->blocks[number].next;
        if (!map_block(a, after, size - a->blocks[number].size)) return NONE;
        number = after;
    }
    const Block *block = &a->blocks[number];
    return place(&a->pools[small], block->size, block->address);
}

static int64_t grown(const Allocator *a, int32_t number) { /* with what it can grow to at the growing end */
    int32_t after = a->blocks[number].next;
    return a->blocks[number].size + (after != NONE && !a->blocks[after].mapped ? a->blocks[after].size : 0);
}

static int64_t find_free(Allocator *a, int64_t size, uint8_t small) { /* get_free_block: its place in the pool */
    Pool *pool = &a->pools[small];
    int64_t at = place(pool, size, NONE);
    if (at == pool->count) return NONE;
    while (a->expandable && at + 1 < pool->count &&
           grown(a, pool->entries[at + 1].block) < grown(a, pool->entries[at].block))
        at++;
    return at;
}

static int32_t allocate_segment(Allocator *a, int64_t size, uint8_t small) { /* alloc_block */
    int64_t segment = segment_size(size);
    int32_t number = new_block(a, a->next_address, segment, small);
    if (number == NONE) return NONE;
    a->next_address += segment;
    a->reserved += segment;
    a->segments++;
    return number;
}

static int32_t allocate(Allocator *a, int64_t size) { /* malloc, should_split */
    uint8_t small = size <= SMALL_ALLOCATION;
    Pool *pool = &a->pools[small];
    int64_t at = find_free(a, size, small);
    if (at == NONE && a->expandable && (at = grow_expandable(a, size, small)) == NONE) return NONE;
    int32_t number = at != NONE ? pool->entries[at].block : allocate_segment(a, size, small);
    if (number == NONE) return NONE;
    int64_t rest = a->blocks[number].size - size;
    if (small || a->expandable ? rest >= BLOCK : rest > SMALL_ALLOCATION) {
        int32_t cut = cut_after(a, number, size);
        if (cut == NONE) return NONE;
        if (at != NONE) exchange(a, pool, at, cut);
        else if (!insert(a, cut)) return NONE;
    } else if (at != NONE) take(pool, at);
    Block *block = &a->blocks[number];
    block->allocated = 1;
    a->allocated += block->size;
    a->live += size;
    return number;
}

static int release(Allocator *a, int32_t number, int64_t size) { /* free_block */
    Block *block = &a->blocks[number];
    a->allocated -= block->size;
    a->live -= size;
    block->allocated = 0;
    return merge(a, number);
}

static int unmap_free(Allocator *a, Pool *pool) { /* every block that is free now; their ends become blocks on the way */
    int64_t count = pool->count;
    int32_t *numbers = malloc((size_t)(count ? count : 1) * sizeof *numbers);
    int done = numbers != NULL;
    for (int64_t at = 0; at < count && done; at++) numbers[at] = pool->entries[at].block;
    for (int64_t at = 0; at < count && done; at++) done = unmap_block(a, numbers[at]);
    free(numbers);
    return done;
}

static int empty_cache(Allocator *a) { /* release_cached_blocks */
    for (int small = 0; small < 2; small++) {
        Pool *pool = &a->pools[small];
        if (a->expandable) {
            if (!unmap_free(a, pool)) return 0;
            continue;
        }
        for (int64_t at = pool->count - 1; at >= 0; at--) {
            const Block *block = &a->blocks[pool->entries[at].block];
            if (block->prev != NONE || block->next != NONE) continue;
            a->reserved -= block->size;
            a->segments--;
            int32_t number = pool->entries[at].block;
            take(pool, at);
            if (!retire(a, number)) return 0;
        }
    }
    return 1;
}

/* Plays `events` allocations and frees.
 *
 * keys:    a number for each storage, from 1 to n_keys - 1; the free of 0 is a call of torch.cuda.empty_cache().
 * sizes:   an index into `table` for an allocation, -1 for a free.
 * table:   bytes, multiples of 512; an allocation of 0 bytes takes nothing.
 * begins:  the first event of each phase; the first phase begins at 0.
 * expandable: whether segments grow.
 * out:     segments, then for each phase the highest live, allocated and reserved bytes and those at its end.
 *
 * Returns 0, or 1 where memory ran out.
 */
int memplan_play_events_2(int64_t events, const int32_t *keys, const int32_t *sizes, const int64_t *table, int64_t n_keys,
                 const int64_t *begins, int64_t phases, int expandable, int64_t *out) {
    Allocator a;
    memset(&a, 0, sizeof a);
    a.expandable = expandable != 0;
    if (expandable) a.next_address = ADDRESS_SPACE;
    int32_t *held = malloc((size_t)(n_keys ? n_keys : 1) * sizeof *held);
    int64_t *bytes = malloc((size_t)(n_keys ? n_keys : 1) * sizeof *bytes);
    int failed = !held || !bytes;
    for (int64_t phase = 0; phase < phases && !failed; phase++) {
        int64_t end = phase + 1 < phases ? begins[phase + 1] : events;
        int64_t live = a.live, allocated = a.allocated, reserved = a.reserved;
        for (int64_t event = begins[phase]; event < end; event++) {
            int32_t key = keys[event];
            if (sizes[event] >= 0) {
                int64_t size = table[sizes[event]];
                bytes[key] = size;
                if (!size) continue;
                held[key] = allocate(&a, size);
                if (held[key] == NONE) {
                    failed = 1;
                    break;
                }
                if (a.live > live) live = a.live;
                if (a.allocated > allocated) allocated = a.allocated;
                if (a.reserved > reserved) reserved = a.reserved;
            } else if (!key ? !empty_cache(&a) : bytes[key] && !release(&a, held[key], bytes[key])) {
                failed = 1;
                break;
            }
        }
        int64_t *row = out + 1 + 6 * phase;
        row[0] = live, row[1] = allocated, row[2] = reserved;
        row[3] = a.live, row[4] = a.allocated, row[5] = a.reserved;
    }
    out[0] = a.segments;
    free(held);
    free(bytes);
    free(a.blocks);
    free(a.unused);
    for (int small = 0; small < 2; small++) {
        free(a.pools[small].entries);
        free(a.pools[small].unmapped);
    }
    return failed;
}
