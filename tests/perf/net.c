/* The guest of net.py, what it talks to, and the same without virtio. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Each of size descriptors is a packet, or a buffer for one. */
struct queue {
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t size;
    int kick, call;
    bool receives;
    uint16_t seen;
    bool is_filled;
};

enum { BATCH = 64, PATIENCE_MS = 10000 };

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void publish(const struct queue *q, uint16_t avail_idx)
{
    const uint64_t one = 1;
    __atomic_store_n(&q->avail->idx, avail_idx, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&q->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        (void)!write(q->kick, &one, sizeof(one));
}

/* False if nothing came in time. */
static bool wait_for_used(const struct queue *q)
{
    uint64_t calls;
    struct pollfd call = {q->call, POLLIN, 0};
    __atomic_store_n(&q->avail->flags, 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool is_there = __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) != q->seen;
    if (!is_there && poll(&call, 1, PATIENCE_MS) > 0)
        is_there = read(q->call, &calls, sizeof(calls)) > 0;
    __atomic_store_n(&q->avail->flags, VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_RELAXED);
    return is_there;
}

/* Nanoseconds for so many packets, sent or received; 0: they do not come. */
uint64_t bench_queue(struct queue *q, uint64_t total)
{
    uint64_t start = now_ns(), given = 0, done = 0;
    uint16_t avail_idx = q->avail->idx;
    if (!q->receives || !q->is_filled)
        for (uint32_t id = 0; id < q->size && (q->receives || given < total); id++, given++)
            q->avail->ring[avail_idx++ % q->size] = (uint16_t)id;
    q->is_filled = true;
    publish(q, avail_idx);
    while (done < total) {
        uint16_t used = __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
        if (used == q->seen && !wait_for_used(q))
            return 0;
        for (; q->seen != used; q->seen++, done++) {
            uint32_t id = q->used->ring[q->seen % q->size].id;
            if (q->receives || given < total) {
                q->avail->ring[avail_idx++ % q->size] = (uint16_t)id;
                given++;
            }
        }
        publish(q, avail_idx);
    }
    return now_ns() - start;
}

/* Send the packet for as long as goes is set: how often. */
uint64_t bench_feed(int wire, uint8_t *packet, uint32_t size, volatile int *goes)
{
    struct iovec piece = {packet, size};
    struct mmsghdr messages[BATCH];
    uint64_t sent = 0;
    for (int i = 0; i < BATCH; i++)
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}};
    while (*goes) {
        int count = sendmmsg(wire, messages, BATCH, 0);
        sent += count > 0 ? count : 0;
    }
    return sent;
}

/* Nanoseconds for so many writes of a packet to a tap. */
uint64_t bench_write(int tap, uint8_t *packet, uint32_t size, uint64_t total)
{
    struct iovec piece = {packet, size};
    uint64_t start = now_ns();
    for (uint64_t i = 0; i < total; i++)
        if (writev(tap, &piece, 1) < 0)
            return 0;
    return now_ns() - start;
}

/* Nanoseconds for so many reads. */
uint64_t bench_read(int tap, uint64_t total)
{
    static uint8_t packet[65536];
    uint64_t start = now_ns(), done = 0;
    while (done < total) {
        struct pollfd ready = {tap, POLLIN, 0};
        if (read(tap, packet, sizeof(packet)) > 0)
            done++;
        else if (poll(&ready, 1, PATIENCE_MS) <= 0)
            return 0;
    }
    return now_ns() - start;
}
