/* The journal of one queue, for ring.c only; docs/journal.md has its layout and its order. */
#ifndef VIBE_RING_JOURNAL_H
#define VIBE_RING_JOURNAL_H

#include "ring.h"

/* A chain goes round: IDLE, IN_FLIGHT, COMPLETING, IDLE. One that a predecessor left in flight
 * begins as RESUBMIT. */
enum head_state { IDLE, RESUBMIT, IN_FLIGHT, COMPLETING };

struct head {
    uint32_t writable_size; /* of the chain in flight */
    uint8_t state;          /* enum head_state */
};

/* A chain to be resubmitted. */
struct leftover {
    uint64_t counter;
    uint16_t head;
};

/* All zero: there is no journal. */
struct journal {
    struct inflight_region *region;
    struct position_slot *slots;
    uint32_t current;        /* the slot of the last publication */
    uint64_t counter;        /* of the next chain that is popped */
    struct leftover *leftovers; /* in order of counter */
    uint32_t leftover_count;
    uint32_t resubmitted; /* so many of them */
};

/* The queue, as it stands in guest memory. */
struct journal_queue {
    uint32_t size;
    uint16_t avail_idx;
    uint16_t used_idx;
    struct head *heads; /* all IDLE; RESUBMIT afterwards, where a chain was left in flight */
};

/* Begin a fresh journal at *position, or take over what a predecessor left: everything is checked
 * before anything is stored. Not for use after an error. */
enum ring_error journal_attach(struct journal *journal, const struct ring_journal *where,
                               const struct journal_queue *queue, uint64_t *position);
void journal_free(struct journal *journal);

void journal_pop(struct journal *journal, uint16_t head);

/* Around the store of used.idx: what has to be there before it, and what may be there only after
 * it. used_idx is its value after the batch. */
void journal_prepare(struct journal *journal, const struct ring_completion *done, uint32_t count,
                     uint16_t used_idx, uint64_t position);
void journal_settle(struct journal *journal, const struct ring_completion *done, uint32_t count,
                    uint16_t used_idx);

#endif
