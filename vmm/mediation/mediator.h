/* Between a guest's virtqueue and a device process: the device's half of the guest's ring, and
 * the driver's half of a shadow ring that only VMM and device map (virtio 1.2, section 2.7).
 *
 *     guest's ring          mediator                      shadow ring         device process
 *     avail, descriptors ─► ring_pop, private copy ─────► descriptors, avail ─► pops
 *     used               ◄─ hook for what was written ◄── used              ◄── pushes
 *
 * Where there is an arena, the device sees copies only: what it may read is copied there before
 * it sees the chain, and what it wrote is copied back, as far as it says and was asked.
 *
 * One thread at a time may use a mediator. The device runs meanwhile, and so may the guest. The
 * device is hostile, and maps shadow ring and arena whole: so of these only used is ever read,
 * each field of it once, and of the arena what a completed chain is copied back from, each byte
 * of it once. Everything else that the mediator has to know again lies in its own memory.
 *
 * Plain C with no global state. build.py hands the part between the two marks to cffi.
 */
#ifndef VIBE_MEDIATOR_H
#define VIBE_MEDIATOR_H

#include "ring.h"

/* cdef begin */

/* Mistakes of the device: it cannot go on. The rest are the caller's and the host's. */
enum mediator_error {
    MEDIATOR_OK,
    MEDIATOR_USED_JUMP,        /* used.idx is further ahead than the device has chains */
    MEDIATOR_ID_OUT_OF_RANGE,  /* a used id is not an index of the shadow's descriptor table */
    MEDIATOR_ID_NOT_IN_FLIGHT, /* not the head of a chain that the device has, or used twice */
    MEDIATOR_TOO_MUCH_WRITTEN, /* more than the chain has writable bytes */
    MEDIATOR_SHADOW_MISPLACED, /* size no power of two up to RING_MAX_SIZE, or smaller than the
                                  guest's; a part or the arena misaligned or outside its memory */
    MEDIATOR_NO_MEMORY,
};

/* Told of a range of guest memory that a device may have written, or that was written for it. It
 * must not call back. */
typedef void mediator_hook(void *context, uint64_t gpa, uint64_t length);

struct mediator_config {
    struct ring_config guest;
    struct ring_config shadow;       /* its features are ignored: the device gets neither */
    struct ring_region shadow_memory;
    uint64_t arena;      /* where it begins in shadow_memory; aligned as ARENA_ALIGNMENT */
    uint32_t arena_size; /* 0: none, the device finds the guest's bytes where they are */
    mediator_hook *hook; /* or NULL */
    void *context;
};

/* What a call leads to. A fault of the guest's ring leaves the flags as they are, for what came
 * before it; with a fault of the device both are false. */
struct mediator_outcome {
    bool ring_device;
    bool interrupt_guest;
    bool more; /* the guest made chains available meanwhile: kick again */
    enum ring_error guest;      /* its ring is broken */
    enum mediator_error device; /* it broke the shadow ring */
};

struct mediator;

/* Goes on where the guest's used.idx stands, with nothing in flight, and clears the shadow
 * ring, which no device may have yet. NULL with a fault in *outcome. The regions are copied;
 * the memory behind them must outlive the mediator. */
struct mediator *mediator_new(const struct mediator_config *config,
                              const struct ring_region *regions, uint32_t region_count,
                              struct mediator_outcome *outcome);

/* Calls the hook for whatever the device still had and could write. It must be quiet. */
void mediator_free(struct mediator *mediator);

/* Move what the guest made available to the shadow ring, as far as descriptors and arena last. A
 * chain that is malformed, or larger than the arena, is completed at once, with 0 bytes. */
struct mediator_outcome mediator_kick(struct mediator *mediator);

/* Take what the device used: check it, copy it, call the hook, publish it to the guest, and move
 * more if a chain waited. A fault of the device publishes nothing of the batch, and
 * every call after it reports it again. */
struct mediator_outcome mediator_complete(struct mediator *mediator);

/* For a successor of a device that is dead, or quiet: all that the device is told is written once
 * more, whatever became of it: descriptors, copies of what may be read, and the avail ring, where
 * just what it has to do stands between used.idx and avail.idx, in the order of lending. So one
 * that keeps no journal goes on at used.idx, and loses nothing. What the one before used by then is
 * taken, and settled by the next mediator_complete. Guest memory is not touched, nor is the hook
 * called. */
void mediator_restore(struct mediator *mediator);

/* Of the guest's ring. What is in flight includes a chain that waits; errors, those too large. */
uint32_t mediator_in_flight(const struct mediator *mediator);
struct ring_counters mediator_counters(const struct mediator *mediator);
uint64_t mediator_too_large(const struct mediator *mediator);

/* The most bytes that a chain may have to fit an arena of so many, however they are divided. */
uint32_t mediator_largest_chain(uint32_t arena_size);

/* cdef end */

#endif
