/* Every store that the engine makes to shared memory, by name: where a crash makes a difference.
 *
 * The table is in the order of a conversation; docs/journal.md says why each step stands where it
 * does. The extension _ring_faults is the same engine built with RING_FAULT_POINTS: there a hook is
 * called right behind each of these stores. Otherwise the names leave no trace. */
#ifndef VIBE_RING_POINTS_H
#define VIBE_RING_POINTS_H

#include <stdint.h>

#define RING_POINTS(POINT)                                                                        \
    POINT(begin_desc_num)       /* a fresh journal, which is one until its version is stored */   \
    POINT(begin_used_idx)                                                                         \
    POINT(begin_position)                                                                         \
    POINT(begin_position_idx)                                                                     \
    POINT(begin_version)                                                                          \
    POINT(recover_clear)        /* a chain of the last batch, which was published */              \
    POINT(recover_used_idx)                                                                       \
    POINT(pop_counter)          /* of the chain's head */                                         \
    POINT(pop_inflight)                                                                           \
    POINT(push_element)         /* one entry of the used ring */                                  \
    POINT(push_next)            /* the chain's link to what was completed before it */            \
    POINT(push_batch_head)                                                                        \
    POINT(push_position)        /* into the slot that is not current */                           \
    POINT(push_position_idx)                                                                      \
    POINT(push_used_idx)        /* used.idx: here the driver owns the batch */                    \
    POINT(push_clear)           /* one chain's in-flight flag */                                  \
    POINT(push_journal_idx)                                                                       \
    POINT(kicks_enable)                                                                           \
    POINT(kicks_disable)

#ifdef RING_FAULT_POINTS

#define RING_POINT_MEMBER(name) RING_POINT_##name,
/* Numbers from the count on are for those that build on the engine, and have points of their own. */
enum ring_point { RING_POINTS(RING_POINT_MEMBER) RING_POINT_COUNT };
void ring_reached(enum ring_point point);
#define REACHED(name) ring_reached(RING_POINT_##name)

/* cdef begin */

typedef void (*ring_fault_hook)(void *context, uint32_t point);

/* Call hook behind every store from now on, in the thread that stores; NULL: no more. Of the
 * whole process, and not to be changed while a ring is at work in another thread. */
void ring_set_fault_hook(ring_fault_hook hook, void *context);

/* The name of a point, counted from 0; NULL behind the last. */
const char *ring_point_name(uint32_t point);

/* cdef end */

#else
#define REACHED(name) ((void)0)
#endif

/* A store to shared memory that others may look at from then on, or a successor once this process
 * is dead. Each is a release, so that none of them passes another: what a killed process leaves
 * behind is what the stores up to some one of them made. */
#define STORE(name, where, value)                                                                 \
    do {                                                                                          \
        __atomic_store_n(where, value, __ATOMIC_RELEASE);                                         \
        REACHED(name);                                                                            \
    } while (0)

#endif
