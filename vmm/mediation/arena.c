/* First fit; the contract is in arena.h. All of it is the mediator's own memory. */

#include "arena.h"

#include <stdlib.h>

bool arena_init(struct arena *arena, uint32_t size, uint32_t count)
{
    struct arena_extent *extents = calloc((size_t)count + 1, sizeof(*extents));
    *arena = (struct arena){size, count, extents};
    if (extents)
        extents[count] = (struct arena_extent){.before = count, .behind = count};
    return extents;
}

void arena_free(struct arena *arena)
{
    free(arena->extents);
}

bool arena_take(struct arena *arena, uint32_t name, uint64_t size)
{
    struct arena_extent *extents = arena->extents;
    uint32_t before = arena->count, behind = extents[before].behind, at = 0;
    while (behind != arena->count && extents[behind].offset - at < size) {
        at = extents[behind].offset + extents[behind].size;
        before = behind;
        behind = extents[behind].behind;
    }
    if (behind == arena->count && arena->size - at < size)
        return false;
    extents[name] = (struct arena_extent){at, (uint32_t)size, before, behind};
    extents[before].behind = extents[behind].before = name;
    return true;
}

void arena_give_back(struct arena *arena, uint32_t name)
{
    const struct arena_extent *extent = &arena->extents[name];
    arena->extents[extent->before].behind = extent->behind;
    arena->extents[extent->behind].before = extent->before;
}
