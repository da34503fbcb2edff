/* Extents of bounce memory, one a chain: the first gap from the front that is large enough. So what
 * is busy stays small, and in the cache, however large the arena is; and a chain that stays for
 * hours is in nobody's way. As there are no more extents than descriptors, so long is a search.
 */
#ifndef VIBE_ARENA_H
#define VIBE_ARENA_H

#include <stdbool.h>
#include <stdint.h>

/* Of each extent, and of its two parts: a cache line. */
#define ARENA_ALIGNMENT 64

struct arena_extent {
    uint32_t offset;
    uint32_t size;
    uint32_t before; /* its neighbours by address, the last one followed by the first; between */
    uint32_t behind; /* those two stands an empty extent, extents[count] */
};

struct arena {
    uint32_t size;
    uint32_t count;
    struct arena_extent *extents; /* by name */
};

/* False if there is no memory. Names are below count. */
bool arena_init(struct arena *arena, uint32_t size, uint32_t count);
void arena_free(struct arena *arena);

/* Give size bytes, a multiple of ARENA_ALIGNMENT, to name, which has none; false if no gap is
 * large enough now. */
bool arena_take(struct arena *arena, uint32_t name, uint64_t size);
void arena_give_back(struct arena *arena, uint32_t name);

#endif
