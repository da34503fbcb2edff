/* The guest of isolation.py: a driver that keeps so many requests of 4 KiB with a disk. */
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* One request a head: its header, data and status lie where isolation.py has put them. */
struct request {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    uint8_t status;
};

struct guest {
    struct vring_avail *avail;
    struct vring_used *used;
    uint8_t *requests; /* stride bytes each */
    uint32_t size, stride, depth, sectors;
    int kick, call;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct request *request_of(const struct guest *g, uint32_t number)
{
    return (struct request *)(g->requests + number * g->stride);
}

static void submit(const struct guest *g, uint16_t *avail_idx, uint32_t number, uint64_t *random)
{
    struct request *request = request_of(g, number);
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    request->header.sector = (*random >> 33) % (g->sectors / 8) * 8;
    request->status = 0xFF;
    g->avail->ring[(*avail_idx)++ % g->size] = (uint16_t)(3 * number);
}

static void publish(const struct guest *g, uint16_t avail_idx)
{
    const uint64_t one = 1;
    __atomic_store_n(&g->avail->idx, avail_idx, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&g->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        (void)!write(g->kick, &one, sizeof(one));
}

static bool has_used(const struct guest *g, uint16_t seen)
{
    return __atomic_load_n(&g->used->idx, __ATOMIC_ACQUIRE) != seen;
}

/* False if none came within ten seconds. */
static bool wait_for_used(const struct guest *g, uint16_t seen)
{
    uint64_t count;
    struct pollfd call = {g->call, POLLIN, 0};
    for (;;) {
        __atomic_store_n(&g->avail->flags, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (has_used(g, seen))
            break;
        if (poll(&call, 1, 10000) <= 0)
            return false;
        (void)!read(g->call, &count, sizeof(count));
    }
    g->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    return true;
}

/* Nanoseconds for so many requests, after the used->idx that there were before; 0 if one failed. */
uint64_t bench_guest(const struct guest *g, uint32_t total)
{
    uint16_t avail_idx = g->avail->idx, seen = g->used->idx;
    uint64_t random = 1, start = now_ns();
    uint32_t done = 0, submitted = 0;
    while (submitted < g->depth && submitted < total)
        submit(g, &avail_idx, submitted++, &random);
    publish(g, avail_idx);
    while (done < total) {
        if (!has_used(g, seen) && !wait_for_used(g, seen))
            return 0;
        uint32_t before = submitted;
        for (; has_used(g, seen); seen++, done++) {
            uint32_t number = g->used->ring[seen % g->size].id / 3;
            if (request_of(g, number)->status != 0)
                return 0;
            if (submitted < total) {
                submit(g, &avail_idx, number, &random);
                submitted++;
            }
        }
        if (submitted != before)
            publish(g, avail_idx);
    }
    return now_ns() - start;
}
