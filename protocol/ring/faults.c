/* The hook of the fault points, in the extension _ring_faults only; the contract is in points.h. */

#include "points.h"

#include <stddef.h>

#define POINT_NAME(name) #name,
static const char *const names[] = {RING_POINTS(POINT_NAME)};

static ring_fault_hook current_hook;
static void *current_context;

void ring_set_fault_hook(ring_fault_hook hook, void *context)
{
    current_context = context;
    current_hook = hook;
}

const char *ring_point_name(uint32_t point)
{
    return point < sizeof(names) / sizeof(names[0]) ? names[point] : NULL;
}

void ring_reached(enum ring_point point)
{
    if (current_hook)
        current_hook(current_context, point);
}
