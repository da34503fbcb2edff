/* Store-buffering litmus of the two bargains of a virtqueue, with a driver and the engine on a
 * thread each: ring_litmus ROUNDS EVENT_IDX.
 *
 *     driver                         device
 *     publish avail.idx              arm avail_event      (ring_enable_kicks)
 *     full fence                     full fence
 *     read avail_event: kick?        read avail.idx: again?          never neither
 *
 *     arm used_event                 publish used.idx     (ring_push)
 *     full fence                     full fence
 *     read used.idx: seen?           read used_event: interrupt?     never neither
 *
 * Without EVENT_IDX the flags take the part of the events. Prints how often each pair came
 * out as neither, which is a notification lost for good; exit status 1 if it ever did.
 */
#include "../../protocol/ring/ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIZE = 4, DESC = 0, AVAIL = 0x100, USED = 0x200 };

static uint8_t memory[4096] __attribute__((aligned(4096)));
static uint16_t *const avail = (uint16_t *)(memory + AVAIL);
static uint16_t *const used = (uint16_t *)(memory + USED);
static uint16_t *const used_event = (uint16_t *)(memory + AVAIL + 4 + 2 * SIZE);
static uint16_t *const avail_event = (uint16_t *)(memory + USED + 4 + 8 * SIZE);

static struct ring *ring;
static bool event_idx;
static uint32_t rounds;
static bool kick, seen; /* what the driver found; the device's findings are its own */

static uint16_t load(const uint16_t *where)
{
    return __atomic_load_n(where, __ATOMIC_RELAXED);
}

static void store(uint16_t *where, uint16_t value)
{
    __atomic_store_n(where, value, __ATOMIC_RELAXED);
}

/* Both threads leave together, as nearly as two can; called alike often by both. */
static void meet(uint32_t *calls)
{
    static uint32_t arrived;
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
    *calls += 1;
    for (uint32_t spin = 1; (int32_t)(__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) - 2 * *calls) < 0;
         spin++)
        if (spin % 4096 == 0)
            sched_yield(); /* the other one may be waiting for this core */
}

/* Shifts the two sides against each other by a little, differently in each round. */
static void dawdle(uint32_t round, uint32_t factor)
{
    for (volatile uint32_t turns = (round * factor) >> 28; turns; turns--)
        ;
}

static void *drive(void *unused)
{
    uint32_t calls = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        uint16_t idx = (uint16_t)round;
        store(&avail[0], 1); /* no interrupts, where flags count */
        store(&avail[2 + idx % SIZE], idx % SIZE);
        meet(&calls);
        dawdle(round, 2654435761u);
        __atomic_store_n(&avail[1], (uint16_t)(idx + 1), __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        kick = event_idx ? load(avail_event) == idx : !load(&used[0]);
        meet(&calls);
        meet(&calls);
        dawdle(round, 2654435761u);
        if (event_idx)
            store(used_event, idx);
        else
            store(&avail[0], 0);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        seen = load(&used[1]) != idx;
        meet(&calls);
    }
    return unused;
}

int main(int argc, char **argv)
{
    rounds = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
    event_idx = argc > 2 && argv[2][0] == '1';
    struct ring_region region = {0, sizeof(memory), memory};
    struct ring_config config = {DESC, AVAIL, USED, SIZE, event_idx, true};
    enum ring_error error;
    pthread_t thread;
    uint32_t lost_kicks = 0, lost_interrupts = 0, calls = 0;
    ring = ring_new(&config, &region, 1, &error);
    if (!ring || pthread_create(&thread, NULL, drive, NULL))
        return 2;
    for (uint32_t round = 0; round < rounds; round++) {
        struct ring_chain chain;
        static struct iovec segments[RING_MAX_SEGMENTS];
        ring_disable_kicks(ring);
        meet(&calls);
        dawdle(round, 2246822519u);
        bool again = ring_enable_kicks(ring);
        meet(&calls);
        lost_kicks += !kick && !again;
        if (ring_pop(ring, &chain, 1, segments, RING_MAX_SEGMENTS) != 1)
            return 2;
        struct ring_completion done = {chain.head, 0};
        meet(&calls);
        dawdle(round, 2246822519u);
        bool interrupt = ring_push(ring, &done, 1) == 1;
        meet(&calls);
        lost_interrupts += !seen && !interrupt;
    }
    pthread_join(thread, NULL);
    ring_free(ring);
    printf("%u rounds, lost kicks: %u, lost interrupts: %u\n", rounds, lost_kicks, lost_interrupts);
    return lost_kicks || lost_interrupts;
}
