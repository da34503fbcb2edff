/* A lane: one queue served in C, from the kick to the call, without Python.
 *
 * The lane pops, completes and notifies; what a request means is one function, carry_out. That
 * does what devices are asked all the time, and declines the rest: all that is rare, malformed or
 * has failed. What is declined goes to the handler in Python, in its place in the order, so each
 * rule stands in one place. build.py hands the part between the two marks to cffi.
 */
#ifndef VIBE_LANE_H
#define VIBE_LANE_H

#include "points.h"
#include "ring.h"

/* cdef begin */

/* Chains popped and completed together, as devices/runtime/queue.py does. */
#define LANE_BATCH 32

/* Chains that may be popped, and not begun or not published: a packet of 64 KiB wants 44 buffers of
 * the size that Linux makes. */
#define LANE_WINDOW 128
/* Of them, so many are published at once: meanwhile the driver can see to those (measured). */
#define LANE_PUBLICATION 16

/* Why a lane returns; or minus an enum ring_error. */
enum lane_end {
    LANE_IDLE,     /* nothing waits, and the driver was asked for a kick */
    LANE_TURN,     /* the turn is over, more may wait */
    LANE_DECLINED, /* the chain in declined is not for C, and it is the next to be handled */
    LANE_SPENT,    /* requests or bytes are used up, more may wait */
    LANE_WAITS,    /* more waits, for what the lane awaits of its source */
};

/* What carry_out returns for a chain that it has not carried out; for one whose end comes later
 * (struct lane_keeper); and for one that is to be begun again when the lane's source can be written
 * to. */
#define LANE_DECLINE -1
#define LANE_KEEP -2
#define LANE_LATER -3

struct lane;

/* Bytes written to the chain, its status included, or one of those three. */
typedef int64_t (*lane_carry_out)(void *device, const struct ring_chain *chain,
                                  const struct iovec *segments);

/* Another way to serve a turn than chain by chain; as lane_serve. */
typedef int (*lane_turn)(struct lane *lane);

/* A chain, and the segments among which its own begin at chain->first, until another one is kept;
 * and what carry_out would have returned, had it not kept it. */
struct lane_kept {
    const struct ring_chain *chain;
    const struct iovec *segments;
    int64_t written;
};

/* What a lane has whose carry_out keeps chains, to be carried out meanwhile and in any order. */
struct lane_keeper {
    int ended;     /* can be polled: readable while take would find one; -1 is never readable */
    uint32_t kept; /* so many chains, of which there may be so many: */
    uint32_t most;
    /* Begin what was kept since the last time, and wait until so many have ended. False if not all
     * could be begun: then again, once something was taken. */
    bool (*submit)(void *device, uint32_t wait);
    /* One that has ended, which is not kept any more; false if there is none. */
    bool (*take)(void *device, struct lane_kept *kept);
};

struct lane_counters {
    uint64_t chains; /* those declined are not among them */
    uint64_t errors; /* of them, what the driver got wrong */
    uint64_t batches;
    uint64_t kicks;
    uint64_t interrupts;
    uint64_t bytes_read; /* from the guest */
    uint64_t bytes_written;
};

/* Of looking out for work before sleeping: lane.c says when it pays. */
struct lane_outlook {
    uint32_t doubt;
    uint32_t skip;
};

/* All zero, then the first part is filled in. */
struct lane {
    struct ring *ring; /* NULL: at rest */
    int kick;          /* eventfds that do not block; the call may be a socket, or -1 */
    int call;
    lane_carry_out carry_out;
    lane_turn serve; /* or NULL */
    void *device;
    int source;    /* what it waits for besides its kick, while it awaits events of poll(2) there */
    short awaited; /* those */
    struct lane_keeper *keeper; /* NULL: it keeps nothing */
    uint64_t turn_ns;
    bool ends;      /* atomic: turns are to end with the chain that is carried out */
    bool declines; /* everything */
    int64_t requests; /* chains, and bytes of them, that may be begun; both are counted down, and */
    int64_t bytes;    /* bytes may get below 0: who has any may have a whole chain */

    struct lane_counters counters;
    struct lane_outlook outlook;
    struct lane_kept declined;
    uint32_t next; /* of the chains popped, the first that was not begun */
    uint32_t count;
    struct ring_chain chains[LANE_WINDOW];
    struct iovec segments[2 * RING_MAX_SEGMENTS];
    uint32_t done_count;
    struct ring_completion done[LANE_WINDOW];
};

/* Serve one turn: an enum lane_end, or minus an enum ring_error. All that was carried out is
 * published, whatever the end. */
int lane_serve(struct lane *lane);

/* Wait for all that is kept: LANE_IDLE once nothing is, or LANE_DECLINED, and then again. What was
 * carried out is published. */
int lane_finish(struct lane *lane);

/* Publish what is done, and interrupt the driver if it wants that. For a lane_turn. */
void lane_publish(struct lane *lane);

/* For a lane_turn, too: nanoseconds of the clock that costs least, and whether a turn is over that
 * was to end then. */
uint64_t lane_now(void);
bool lane_is_over(const struct lane *lane, uint64_t end);

/* Serve what the kick announces, what the lane awaits of its source, and what its keeper has ended,
 * sleeping in between, until others (something that can be polled) is readable, milliseconds have
 * passed without any (-1: never), a signal comes, or a turn ends otherwise than LANE_IDLE or
 * LANE_WAITS, which is then returned. */
int lane_attend(struct lane *lane, int others, int milliseconds);

/* cdef end */

static inline bool lane_ends(const struct lane *lane)
{
    return __atomic_load_n(&lane->ends, __ATOMIC_ACQUIRE);
}

/* Points at which faults can strike, as devices/runtime/faults.py has them for queues that are
 * served in Python; in the order of devices.lanes.faults.POINTS. They come to the engine's hook.
 * Before the first, where a chain is begun, that may have it declined. */
#ifdef RING_FAULT_POINTS
enum lane_point { LANE_BEGIN = RING_POINT_COUNT, LANE_HANDLE, LANE_COMPLETE, LANE_INTERRUPT };
#define PASS(point) ring_reached((enum ring_point)(point))
#else
#define PASS(point) ((void)0)
#endif

#endif
