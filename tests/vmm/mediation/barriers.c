/* The litmus of tests/protocol/ring_litmus.c, with a guest for a driver. Compiled twice: with GUEST
 * into the guest's code, which is drive() alone, and into a library with the device's half.
 *
 *     guest                          device
 *     publish avail.idx              arm avail_event      (ring_enable_kicks)
 *     mfence                         full fence
 *     read avail_event: kick?        read avail.idx: again?          never neither
 *
 *     arm used_event                 publish used.idx     (ring_push)
 *     mfence                         full fence
 *     read used.idx: seen?           read used_event: interrupt?     never neither
 */
#include <stdint.h>

/* Guest addresses; test_barriers.py has the same. Lines of cache of their own but for the rings. */
enum {
    SIZE = 4,
    DESC = 0x20000, AVAIL = 0x20100, USED = 0x20200,
    GUEST_CAME = 0x20400, HOST_CAME = 0x20480, /* how often each has come to a meeting */
    GUEST_FOUND = 0x90000, /* a byte a round */
};

enum { KICK = 1, INTERRUPT = 2 }; /* the bargains in which a side has noticed the other */

/* Both sides leave together, as nearly as two can. */
static inline void meet(volatile uint32_t *came, const volatile uint32_t *other, void (*idle)(void))
{
    uint32_t count = *came + 1;
    *came = count;
    for (uint32_t spin = 1; (int32_t)(*other - count) < 0; spin++)
        if (idle && spin % 4096 == 0)
            idle(); /* the other one may be waiting for this core */
}

/* Shifts the two sides against each other, differently in each round: 2^bits turns at most. */
static inline void dawdle(uint32_t round, uint32_t factor, uint32_t bits)
{
    for (uint32_t turns = (round * factor) >> (32 - bits); turns; turns--)
        __asm__ volatile("");
}

#ifdef GUEST

#define WORD(address) (*(volatile uint16_t *)(uintptr_t)(address))
#define LONG(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* Entered with its arguments in registers, and without a return address. */
void drive(uint32_t rounds, volatile uint32_t *doorbell, uint32_t bits)
{
    volatile uint16_t *avail_idx = &WORD(AVAIL + 2), *used_idx = &WORD(USED + 2);
    volatile uint16_t *used_event = &WORD(AVAIL + 4 + 2 * SIZE);
    volatile uint16_t *avail_event = &WORD(USED + 4 + 8 * SIZE);
    for (uint32_t round = 0; round < rounds; round++) {
        uint16_t idx = (uint16_t)round;
        uint8_t found = 0;
        meet(&LONG(GUEST_CAME), &LONG(HOST_CAME), 0);
        dawdle(round, 2654435761u, bits);
        *avail_idx = (uint16_t)(idx + 1); /* of descriptor 0, which every entry names */
        __asm__ volatile("mfence" ::: "memory");
        if (*avail_event == idx)
            found |= KICK;
        if (found)
            *doorbell = 0;
        meet(&LONG(GUEST_CAME), &LONG(HOST_CAME), 0);
        meet(&LONG(GUEST_CAME), &LONG(HOST_CAME), 0);
        dawdle(round, 2654435761u, bits);
        *used_event = idx;
        __asm__ volatile("mfence" ::: "memory");
        if (*used_idx != idx)
            found |= INTERRUPT;
        ((volatile uint8_t *)(uintptr_t)GUEST_FOUND)[round] = found;
        meet(&LONG(GUEST_CAME), &LONG(HOST_CAME), 0);
        while (*used_idx == idx)
            ;
    }
    for (;;)
        __asm__ volatile("outb %al, $0xf4");
}

#else

#include "../../../protocol/ring/ring.h"

#include <sched.h>

static void idle(void) { sched_yield(); }

/* The ring engine on the guest's own ring, while the guest runs. Writes what the device found, a
 * byte a round, and ends early if the guest has failed. */
void race(uint8_t *ram, uint64_t ram_size, uint32_t rounds, uint8_t *device_found)
{
    struct ring_region region = { 0, ram_size, ram };
    struct ring_config config = { DESC, AVAIL, USED, SIZE, true, false };
    struct iovec segments[RING_MAX_SEGMENTS];
    struct ring_chain chain;
    volatile uint32_t *guest = (uint32_t *)(ram + GUEST_CAME), *host = (uint32_t *)(ram + HOST_CAME);
    enum ring_error error;
    struct ring *ring = ring_new(&config, &region, 1, &error);
    int popped = ring ? 1 : -1;
    for (uint32_t round = 0; popped == 1 && round < rounds; round++) {
        ring_disable_kicks(ring);
        meet(host, guest, idle);
        dawdle(round, 2246822519u, 8);
        bool again = ring_enable_kicks(ring);
        meet(host, guest, idle);
        popped = ring_pop(ring, &chain, 1, segments, RING_MAX_SEGMENTS);
        meet(host, guest, idle);
        dawdle(round, 2246822519u, 8);
        bool interrupt = ring_push(ring, &(struct ring_completion){ chain.head, 0 }, 1) == 1;
        meet(host, guest, idle);
        device_found[round] = (again ? KICK : 0) | (interrupt ? INTERRUPT : 0);
    }
    ring_free(ring);
}

#endif
