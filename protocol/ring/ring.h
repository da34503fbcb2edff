/* The device's half of a split virtqueue (virtio 1.2, section 2.7).
 *
 * Plain C with no global state: usable from any C lane as well as through cffi. One thread
 * at a time may use a ring; different rings are independent.
 *
 * Everything in guest memory is hostile and changes at any moment: each index and descriptor
 * is copied once, the copy is validated, and the copy is used. build.py hands the part between
 * the two marks to cffi, so the Python side cannot drift from it.
 */
#ifndef VIBE_RING_H
#define VIBE_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* cdef begin */

/* Most segments one chain may have, whatever the size of its queue. It is UIO_MAXIOV of
 * <linux/uio.h>, the most that preadv takes; virtio 1.2, 2.7.4.1 allows a reasonable limit. */
#define RING_MAX_SEGMENTS 1024

/* The largest queue: virtio 1.2, 2.7. */
#define RING_MAX_SIZE 32768

/* Mistakes that cost the driver one request. The chain is popped, and is to be completed. */
enum ring_chain_error {
    RING_CHAIN_OK,
    RING_CHAIN_TOO_LONG,                /* a loop, or more than queue size or RING_MAX_SEGMENTS */
    RING_CHAIN_NEXT_OUT_OF_RANGE,       /* next is not an index of its table */
    RING_CHAIN_BUFFER_OUTSIDE_RAM,      /* overflows, or is not wholly inside one region */
    RING_CHAIN_READABLE_AFTER_WRITABLE, /* 2.7.4.2 */
    RING_CHAIN_TOO_MANY_BYTES,          /* 2^32 or more in all; 2.7.5.2, and used.len is 32 bits */
    RING_CHAIN_INDIRECT_UNEXPECTED,     /* the feature was not negotiated */
    RING_CHAIN_INDIRECT_NESTED,         /* a table inside a table */
    RING_CHAIN_INDIRECT_WITH_NEXT,      /* both flags */
    RING_CHAIN_INDIRECT_LENGTH,         /* zero, or not a multiple of 16 */
    RING_CHAIN_INDIRECT_TOO_LARGE,      /* more entries than the queue */
    RING_CHAIN_INDIRECT_OUTSIDE_RAM,    /* the table itself */
};

/* What costs the device: it cannot go on until it is reset. Mistakes of the driver, and those
 * named RING_JOURNAL_*: a journal that no working engine left, or whose used.idx the driver has
 * overwritten. */
enum ring_error {
    RING_OK,
    RING_SIZE,            /* zero, not a power of two, or above RING_MAX_SIZE */
    RING_DESC_MISALIGNED, /* 16, 2 and 4 bytes: the table of 2.7 */
    RING_AVAIL_MISALIGNED,
    RING_USED_MISALIGNED,
    RING_DESC_OUTSIDE_RAM,
    RING_AVAIL_OUTSIDE_RAM,
    RING_USED_OUTSIDE_RAM,
    RING_JOURNAL_VERSION,   /* written in a way that we do not know */
    RING_JOURNAL_SIZE,      /* of a queue of another size, or too small for this one */
    RING_JOURNAL_USED_IDX,  /* differs from used.idx by more than a queue size */
    RING_JOURNAL_LINK,      /* the last batch has no such chain, or has it twice */
    RING_JOURNAL_INFLIGHT,  /* a flag that is neither 0 nor 1 */
    RING_JOURNAL_TOO_MANY,  /* more in flight than made available and not used */
    RING_JOURNAL_COUNTER,   /* two chains with the same, or beyond every honest one */
    RING_JOURNAL_POSITION,  /* no position belongs to used.idx */
    RING_AVAIL_JUMP,        /* avail.idx is more than a queue size ahead */
    RING_HEAD_OUT_OF_RANGE, /* an avail entry is not an index of the descriptor table */
    RING_HEAD_IN_FLIGHT,    /* made available again before it was used */
    RING_NO_MEMORY,         /* the host's mistake, not the driver's */
};

/* Mistakes of the device itself in ring_push: nothing of that batch is published. */
enum ring_push_error {
    RING_PUSH_OK,
    RING_PUSH_NOT_IN_FLIGHT, /* never popped, completed before, or twice in this batch */
    RING_PUSH_TOO_MUCH,      /* more written than the chain has writable bytes */
};

/* Guest RAM: size bytes at guest address gpa, which this process sees at host. */
struct ring_region {
    uint64_t gpa;
    uint64_t size;
    uint8_t *host;
};

/* A queue's journal, in memory that outlives this process: docs/journal.md. All zero is a fresh
 * one. Both parts are aligned to 8 bytes. Whoever wrote there before is dead, and not trusted. */
struct ring_journal {
    void *region;    /* 16 bytes, and 16 more for each of size descriptors */
    void *positions; /* 32 bytes */
    uint32_t size;
};

/* What the driver and the transport agreed on; desc, avail and used are guest addresses. */
struct ring_config {
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint32_t size;
    bool event_idx;
    bool indirect;
    const struct ring_journal *journal; /* or NULL; copied, the memory must outlive the ring */
    uint64_t position;                  /* to begin at, where no journal says another */
};

/* A popped chain: its segments are segments[first], readable ones before writable ones.
 * With error set it has none. A descriptor of zero bytes counts towards the length of the
 * chain, is checked for order, and adds no segment. */
struct ring_chain {
    uint16_t head;
    uint16_t error; /* enum ring_chain_error */
    uint32_t first;
    uint16_t readable; /* number of segments */
    uint16_t writable;
    uint32_t readable_size; /* bytes */
    uint32_t writable_size;
};

struct ring_completion {
    uint32_t head;
    uint32_t written; /* bytes, from the start of the writable part */
};

struct ring_counters {
    uint64_t chains;  /* popped, faulty ones included */
    uint64_t batches; /* pops that found at least one */
    uint64_t errors;  /* chains that came out with an error */
};

struct ring;

/* A ring that goes on where used.idx stands; NULL with *error set. Without a journal nothing is in
 * flight. With one, what a predecessor left in flight comes out of ring_pop again, before anything
 * else and in its order. The regions are copied; the memory behind them must outlive the ring. */
struct ring *ring_new(const struct ring_config *config, const struct ring_region *regions,
                      uint32_t region_count, enum ring_error *error);
void ring_free(struct ring *ring);

/* Pop up to limit chains in avail order. Returns how many, or minus an enum ring_error.
 * Stops early when the rest of segments could not hold the longest chain, so capacity must be
 * RING_MAX_SEGMENTS or more to be sure of progress. Stops before a fault of the ring; it is
 * reported by the next call, and by every call after that. */
int ring_pop(struct ring *ring, struct ring_chain *chains, uint32_t limit,
             struct iovec *segments, uint32_t capacity);

/* Complete chains, in one publication. Returns 1 when the driver wants an interrupt, 0 when
 * it does not, or minus an enum ring_push_error, and then nothing has changed. */
int ring_push(struct ring *ring, const struct ring_completion *done, uint32_t count);

/* The same, and with the batch the ring's position becomes another: a successor sees either both
 * or neither. Nothing is published by an empty batch. */
int ring_push_at(struct ring *ring, const struct ring_completion *done, uint32_t count,
                 uint64_t position);

/* Ask for notifications. True when chains wait already, or the ring is broken: pop again. */
bool ring_enable_kicks(struct ring *ring);
void ring_disable_kicks(struct ring *ring);

/* Whether chains wait, or the ring is broken: a look, and the driver is asked for nothing. */
bool ring_is_waiting(const struct ring *ring);

uint32_t ring_in_flight(const struct ring *ring); /* those to be resubmitted included */
uint16_t ring_used_idx(const struct ring *ring);  /* used.idx, as we have stored it */
uint64_t ring_position(const struct ring *ring);  /* as of the last batch */
struct ring_counters ring_counters(const struct ring *ring);

/* One aligned access to memory that another process or the guest reads or writes. */
void ring_store32(uint32_t *where, uint32_t value); /* release */
uint32_t ring_load32(const uint32_t *where);        /* acquire */
void ring_store64(uint64_t *where, uint64_t value); /* release */
uint64_t ring_load64(const uint64_t *where);        /* acquire */

/* cdef end */

#endif
