/* The two loops that ring_bench.py compares. */

#include "ring.h"

#include <string.h>
#include <time.h>

enum { BATCH = 32, COPY = 4096 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Nanoseconds for that many batches through the ring: the driver's part is one store, for the
 * avail ring holds the heads in order already. 0 if a batch was not whole. */
uint64_t bench_ring(struct ring *ring, uint16_t *avail_idx, uint32_t batches)
{
    struct ring_chain chains[BATCH];
    struct iovec segments[RING_MAX_SEGMENTS];
    struct ring_completion done[BATCH];
    uint64_t start = now_ns();
    for (uint32_t turn = 0; turn < batches; turn++) {
        __atomic_store_n(avail_idx, (uint16_t)(*avail_idx + BATCH), __ATOMIC_RELEASE);
        if (ring_pop(ring, chains, BATCH, segments, RING_MAX_SEGMENTS) != BATCH)
            return 0;
        for (uint32_t i = 0; i < BATCH; i++)
            done[i] = (struct ring_completion){chains[i].head, chains[i].writable_size};
        if (ring_push(ring, done, BATCH) < 0)
            return 0;
    }
    return now_ns() - start;
}

/* Nanoseconds for copying 4 KiB a chain, from and to as many buffers as the batch has. */
uint64_t bench_copy(uint8_t *to, const uint8_t *from, uint32_t batches)
{
    uint64_t start = now_ns();
    for (uint32_t turn = 0; turn < batches; turn++)
        for (uint32_t i = 0; i < BATCH; i++) {
            memcpy(to + i * COPY, from + i * COPY, COPY);
            __asm__ volatile("" ::: "memory"); /* or the compiler drops all but the last */
        }
    return now_ns() - start;
}
