/* The loop that mediator_bench.py compares with bench_ring of ring_bench.c. */

#include "mediator.h"

#include <time.h>

enum { BATCH = 32 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A hook that costs a call and a store. */
void bench_hook(void *context, uint64_t gpa, uint64_t length)
{
    (void)gpa;
    *(volatile uint64_t *)context += length;
}

static bool serve(struct ring *device)
{
    struct ring_chain chains[BATCH];
    struct iovec segments[RING_MAX_SEGMENTS];
    struct ring_completion done[BATCH];
    if (ring_pop(device, chains, BATCH, segments, RING_MAX_SEGMENTS) != BATCH)
        return false;
    for (uint32_t i = 0; i < BATCH; i++)
        done[i] = (struct ring_completion){chains[i].head, chains[i].writable_size};
    return ring_push(device, done, BATCH) >= 0;
}

/* Nanoseconds for that many batches from the guest's ring to the device and back, all in one
 * thread; the guest's part is one store, as in bench_ring. 0 if a batch was not whole. */
uint64_t bench_mediated(struct mediator *mediator, struct ring *device, uint16_t *avail_idx,
                        uint32_t batches)
{
    uint64_t start = now_ns();
    for (uint32_t turn = 0; turn < batches; turn++) {
        __atomic_store_n(avail_idx, (uint16_t)(*avail_idx + BATCH), __ATOMIC_RELEASE);
        if (!mediator_kick(mediator).ring_device || !serve(device) ||
            !mediator_complete(mediator).interrupt_guest)
            return 0;
    }
    return now_ns() - start;
}
