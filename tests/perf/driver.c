/* A driver that keeps so many requests of 4 KiB with a disk; driver.py has laid them out. */
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* One request a head: its header, data and status lie where driver.py has put them. */
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
    bool event_idx;
    uint32_t *took; /* nanoseconds of each request, of depth 1 alone; or NULL */
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

/* Whether the device has asked for a kick when avail->idx goes on from before to idx. */
static bool wants_kick(const struct guest *g, uint16_t before, uint16_t idx)
{
    if (!g->event_idx)
        return !(__atomic_load_n(&g->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
    const uint16_t *avail_event = (const uint16_t *)&g->used->ring[g->size];
    return vring_need_event(__atomic_load_n(avail_event, __ATOMIC_RELAXED), idx, before);
}

static void publish(const struct guest *g, uint16_t before, uint16_t idx)
{
    const uint64_t one = 1;
    __atomic_store_n(&g->avail->idx, idx, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (wants_kick(g, before, idx))
        (void)!write(g->kick, &one, sizeof(one));
}

static bool has_used(const struct guest *g, uint16_t seen)
{
    return __atomic_load_n(&g->used->idx, __ATOMIC_ACQUIRE) != seen;
}

static bool any_used(const struct guest *guests, uint32_t count, const uint16_t *seen)
{
    for (uint32_t i = 0; i < count; i++)
        if (has_used(&guests[i], seen[i]))
            return true;
    return false;
}

/* At what is used next; without EVENT_IDX, until flags say otherwise. */
static void want_interrupts(const struct guest *guests, uint32_t count, const uint16_t *seen)
{
    for (uint32_t i = 0; i < count; i++) {
        struct vring_avail *avail = guests[i].avail;
        if (guests[i].event_idx) /* behind the last entry */
            __atomic_store_n(&avail->ring[guests[i].size], seen[i], __ATOMIC_RELAXED);
        else
            __atomic_store_n(&avail->flags, 0, __ATOMIC_RELAXED);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void want_none(const struct guest *guests, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!guests[i].event_idx)
            guests[i].avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
}

/* False if none came within ten seconds. All have one call. */
static bool wait_for_used(const struct guest *guests, uint32_t count, const uint16_t *seen)
{
    uint64_t calls;
    struct pollfd call = {guests->call, POLLIN, 0};
    for (;;) {
        want_interrupts(guests, count, seen);
        if (any_used(guests, count, seen))
            break;
        if (poll(&call, 1, 10000) <= 0)
            return false;
        (void)!read(guests->call, &calls, sizeof(calls));
    }
    want_none(guests, count);
    return true;
}

enum { MOST_QUEUES = 16 };

/* Nanoseconds for so many requests, which one driver spreads over as many queues as there are; 0
 * if one failed. Each queue is quiet, and goes on where it stands. */
uint64_t bench_guest(const struct guest *guests, uint32_t count, uint32_t total)
{
    uint16_t avail_idx[MOST_QUEUES], seen[MOST_QUEUES];
    uint64_t random = 1, start = now_ns(), last = start;
    uint32_t done = 0, submitted = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct guest *g = &guests[i];
        uint16_t before = avail_idx[i] = g->avail->idx;
        seen[i] = g->used->idx;
        for (uint32_t number = 0; number < g->depth && submitted < total; number++, submitted++)
            submit(g, &avail_idx[i], number, &random);
        publish(g, before, avail_idx[i]);
    }
    while (done < total) {
        if (!any_used(guests, count, seen) && !wait_for_used(guests, count, seen))
            return 0;
        for (uint32_t i = 0; i < count; i++) {
            const struct guest *g = &guests[i];
            uint16_t before = avail_idx[i];
            for (; has_used(g, seen[i]); seen[i]++, done++) {
                uint32_t number = g->used->ring[seen[i] % g->size].id / 3;
                if (request_of(g, number)->status != 0)
                    return 0;
                if (g->took) {
                    uint64_t now = now_ns();
                    g->took[done] = now - last;
                    last = now;
                }
                if (submitted < total) {
                    submit(g, &avail_idx[i], number, &random);
                    submitted++;
                }
            }
            if (avail_idx[i] != before)
                publish(g, before, avail_idx[i]);
        }
    }
    return now_ns() - start;
}
