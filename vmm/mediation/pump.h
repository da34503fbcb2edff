/* The mediators of one device, run by a thread of their own while the guest runs.
 *
 *     guest's kicks, a doorbell each ─► ┌──────┐ ─► the device's kick doorbells
 *                                       │ pump │
 *     the device's call doorbell ─────► └──────┘ ─► the guest's interrupt line, a doorbell
 *
 * All doorbells are eventfds. Those that are waited for are never read: an edge is a ring, which
 * spares a system call, and no other holder of a doorbell can make us wait by reading it first.
 * Those of the device are held by it too, and it may fill one and make it blocking. So ringing it
 * may take for ever, but only until pump_nudge. The guest's interrupt line is ours alone.
 */
#ifndef VIBE_PUMP_H
#define VIBE_PUMP_H

#include "mediator.h"

/* cdef begin */

enum pump_reason {
    PUMP_STOPPED,
    PUMP_GUEST_BROKE,  /* the ring of a queue: the rest goes on when it is run again */
    PUMP_DEVICE_BROKE, /* a shadow ring */
    PUMP_BELL_FULL,    /* a kick doorbell was rung 2^64 times: by somebody who filled it */
};

struct pump_end {
    enum pump_reason reason;
    enum ring_error guest;
    enum mediator_error device;
    uint32_t queue;
};

struct pump;

/* For count queues; kicks and line are doorbells, which stay the caller's. NULL with errno. */
struct pump *pump_new(uint32_t count, const int *kicks, int line);
void pump_free(struct pump *pump);

/* These three only while it does not run. Let mediator serve a queue, or none (NULL); lead the
 * device's doorbells to it, one for each queue, 0 or an errno; get ready to run. */
void pump_serve(struct pump *pump, uint32_t queue, struct mediator *mediator);
int pump_connect(struct pump *pump, int call, const int *bells);
void pump_arm(struct pump *pump);

/* Look at every queue once, and then at what rings, until somebody stops it or something breaks. */
struct pump_end pump_run(struct pump *pump);

/* From another thread: let pump_run return, as soon as it looks. And make it look, in case it
 * waits in a doorbell: thread is what gettid() is there; again, if it does not return. */
void pump_stop(struct pump *pump);
void pump_nudge(int thread);

/* cdef end */

#endif
