/* A thread that attends a lane, and is C's alone: no Python runs on it. What is not for C it leaves
 * where it is, and parks; whoever listens to its bell carries that out, and lets it go again. So
 * there is one thread of Python in a device's process, and its code needs no locks.
 *
 *             lane_thread_go
 *     parked ────────────────► attends ──┬── an end for Python: the bell rings
 *        ▲                               │
 *        └───────────────────────────────┴── lane_thread_park
 */
#ifndef VIBE_LANE_THREAD_H
#define VIBE_LANE_THREAD_H

#include "lane.h"

/* cdef begin */

struct lane_thread;

/* A parked thread for lane, which outlives it; NULL with errno. It handles no signals. */
struct lane_thread *lane_thread_new(struct lane *lane);

/* Park it, and end it. */
void lane_thread_free(struct lane_thread *thread);

/* The eventfds that it has: one of its own, and one that is rung whenever it has parked, and is to be
 * drained by whoever listens. */
int lane_thread_wake(const struct lane_thread *thread);
int lane_thread_bell(const struct lane_thread *thread);

/* Attend, beginning with a look. Of a parked thread, whose lane has a ring. */
void lane_thread_go(struct lane_thread *thread);

/* Return once it is parked, which may take as long as one request: how its last attendance ended,
 * once, as lane_attend has it; LANE_IDLE if it was told to end, or has not attended since. Only a
 * parked thread's lane may be touched. */
int lane_thread_park(struct lane_thread *thread);

/* Whether it is. */
bool lane_thread_is_parked(struct lane_thread *thread);

/* cdef end */

#endif
