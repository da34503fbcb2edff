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

/* Why a lane returns; or minus an enum ring_error. */
enum lane_end {
    LANE_IDLE,     /* nothing waits, and the driver was asked for a kick */
    LANE_TURN,     /* the turn is over, more may wait */
    LANE_DECLINED, /* chains[next - 1] is not for C, and it is the next to be handled */
    LANE_SPENT,    /* requests or bytes are used up, more may wait */
    LANE_WAITS,    /* more waits, for what the lane awaits of its source */
};

/* What carry_out returns for a chain that it has not carried out: it is for Python; or it is to be
 * begun again when the lane's source can be written to. */
#define LANE_DECLINE -1
#define LANE_LATER -2

struct lane;

/* Bytes written to the chain, its status included, or LANE_DECLINE or LANE_LATER. */
typedef int64_t (*lane_carry_out)(void *device, const struct ring_chain *chain,
                                  const struct iovec *segments);

/* Another way to serve a turn than chain by chain; as lane_serve. */
typedef int (*lane_turn)(struct lane *lane);

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
    uint64_t turn_ns;
    bool ends;      /* atomic: turns are to end with the chain that is carried out */
    bool declines; /* everything */
    int64_t requests; /* chains, and bytes of them, that may be begun; both are counted down, and */
    int64_t bytes;    /* bytes may get below 0: who has any may have a whole chain */

    struct lane_counters counters;
    struct lane_outlook outlook;
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

/* Publish what is done, and interrupt the driver if it wants that. For a lane_turn. */
void lane_publish(struct lane *lane);

/* For a lane_turn, too: nanoseconds of the clock that costs least, and whether a turn is over that was
 * to end then. */
uint64_t lane_now(void);
bool lane_is_over(const struct lane *lane, uint64_t end);

/* Serve what the kick announces, and what the lane awaits of its source, sleeping in between, until
 * others (something that can be polled) is readable, milliseconds have passed without any (-1: never),
 * a signal comes, or a turn ends otherwise than LANE_IDLE or LANE_WAITS, which is then returned. */
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
