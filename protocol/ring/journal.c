/* What a ring notes outside its process, so that a successor can go on: the contract is in
 * journal.h, the layout that of vhost-user's "Inflight I/O tracking" for split virtqueues.
 *
 * Whoever wrote the journal is dead, and may have been anybody's puppet: each field is copied
 * once and checked, and no loop is longer than the queue. */

#include "journal.h"
#include "points.h"

#include <stdlib.h>

struct inflight_desc {
    uint8_t inflight; /* of a head: popped, and not known to be completed */
    uint8_t padding[5];
    uint16_t next;    /* the chain completed before this one */
    uint64_t counter; /* the order of popping */
};

struct inflight_region {
    uint64_t features; /* none is defined */
    uint16_t version;  /* 0: fresh */
    uint16_t desc_num;
    uint16_t last_batch_head; /* the chain completed last */
    uint16_t used_idx;        /* used.idx, as of the last batch that was settled */
    struct inflight_desc desc[];
};

/* Ours. One of a queue's two belongs to used.idx; the other is free to be written. */
struct position_slot {
    uint64_t position;
    uint16_t used_idx;
    uint8_t padding[6];
};

enum { VERSION = 1 };

_Static_assert(sizeof(struct inflight_region) == 16, "vhost-user: QueueRegionSplit");
_Static_assert(sizeof(struct inflight_desc) == 16, "vhost-user: DescStateSplit");
_Static_assert(sizeof(struct position_slot) == 16, "docs/journal.md");

/* No honest counter comes near it, and from it on there is room for as many again. */
static const uint64_t COUNTER_LIMIT = 1ull << 63;

#define LOAD(where) __atomic_load_n(where, __ATOMIC_RELAXED)

/* While a device works. */

void journal_pop(struct journal *journal, uint16_t head)
{
    struct inflight_desc *desc = &journal->region->desc[head];
    STORE(pop_counter, &desc->counter, journal->counter++);
    STORE(pop_inflight, &desc->inflight, 1);
}

void journal_prepare(struct journal *journal, const struct ring_completion *done, uint32_t count,
                     uint16_t used_idx, uint64_t position)
{
    struct inflight_region *region = journal->region;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t head = done[i].head;
        STORE(push_next, &region->desc[head].next, LOAD(&region->last_batch_head));
        STORE(push_batch_head, &region->last_batch_head, head);
    }
    journal->current ^= 1;
    struct position_slot *slot = &journal->slots[journal->current];
    STORE(push_position, &slot->position, position);
    STORE(push_position_idx, &slot->used_idx, used_idx);
}

void journal_settle(struct journal *journal, const struct ring_completion *done, uint32_t count,
                    uint16_t used_idx)
{
    for (uint32_t i = 0; i < count; i++)
        STORE(push_clear, &journal->region->desc[done[i].head].inflight, 0);
    STORE(push_journal_idx, &journal->region->used_idx, used_idx);
}

/* When one begins. */

static void begin(struct journal *journal, const struct journal_queue *queue, uint64_t position)
{
    struct position_slot *slot = &journal->slots[0];
    STORE(begin_desc_num, &journal->region->desc_num, (uint16_t)queue->size);
    STORE(begin_used_idx, &journal->region->used_idx, queue->used_idx);
    STORE(begin_position, &slot->position, position);
    STORE(begin_position_idx, &slot->used_idx, queue->used_idx);
    STORE(begin_version, &journal->region->version, VERSION);
}

/* The chains between the journal's used_idx and the ring's were published, whatever their flags
 * say. Marks them COMPLETING. */
static enum ring_error find_published(const struct journal *journal,
                                      const struct journal_queue *queue)
{
    struct inflight_region *region = journal->region;
    uint16_t count = queue->used_idx - LOAD(&region->used_idx);
    if (count > queue->size)
        return RING_JOURNAL_USED_IDX;
    uint16_t head = LOAD(&region->last_batch_head);
    for (; count; count--) {
        if (head >= queue->size || queue->heads[head].state != IDLE)
            return RING_JOURNAL_LINK;
        queue->heads[head].state = COMPLETING;
        head = LOAD(&region->desc[head].next);
    }
    return RING_OK;
}

static int by_counter(const void *left, const void *right)
{
    uint64_t a = ((const struct leftover *)left)->counter;
    uint64_t b = ((const struct leftover *)right)->counter;
    return (a > b) - (a < b);
}

/* All others that are in flight, in the order in which they were popped. */
static enum ring_error find_leftovers(struct journal *journal, const struct journal_queue *queue)
{
    struct leftover *leftovers = journal->leftovers;
    uint32_t count = 0;
    for (uint32_t head = 0; head < queue->size; head++) {
        struct inflight_desc *desc = &journal->region->desc[head];
        uint8_t inflight = LOAD(&desc->inflight);
        if (inflight > 1)
            return RING_JOURNAL_INFLIGHT;
        if (!inflight || queue->heads[head].state == COMPLETING)
            continue;
        queue->heads[head].state = RESUBMIT;
        leftovers[count++] = (struct leftover){LOAD(&desc->counter), head};
    }
    /* Each of them was made available, and is not used. */
    if (count > (uint16_t)(queue->avail_idx - queue->used_idx))
        return RING_JOURNAL_TOO_MANY;
    qsort(leftovers, count, sizeof(*leftovers), by_counter);
    for (uint32_t i = 0; i < count; i++)
        if (leftovers[i].counter >= COUNTER_LIMIT ||
            (i && leftovers[i].counter == leftovers[i - 1].counter))
            return RING_JOURNAL_COUNTER;
    journal->leftover_count = count;
    journal->counter = count ? leftovers[count - 1].counter + 1 : 0;
    return RING_OK;
}

static enum ring_error find_position(struct journal *journal, uint16_t used_idx,
                                     uint64_t *position)
{
    for (uint32_t i = 0; i < 2; i++)
        if (LOAD(&journal->slots[i].used_idx) == used_idx) {
            journal->current = i;
            *position = LOAD(&journal->slots[i].position);
            return RING_OK;
        }
    return RING_JOURNAL_POSITION;
}

static enum ring_error check(struct journal *journal, const struct journal_queue *queue,
                             uint64_t *position)
{
    struct inflight_region *region = journal->region;
    if (LOAD(&region->version) != VERSION || LOAD(&region->features))
        return RING_JOURNAL_VERSION;
    if (LOAD(&region->desc_num) != queue->size)
        return RING_JOURNAL_SIZE;
    enum ring_error error = find_published(journal, queue);
    if (!error)
        error = find_leftovers(journal, queue);
    return error ? error : find_position(journal, queue->used_idx, position);
}

enum ring_error journal_attach(struct journal *journal, const struct ring_journal *where,
                               const struct journal_queue *queue, uint64_t *position)
{
    if (queue->size > where->size)
        return RING_JOURNAL_SIZE;
    *journal = (struct journal){.region = where->region, .slots = where->positions};
    if (LOAD(&journal->region->version) == 0) {
        begin(journal, queue, *position);
        return RING_OK;
    }
    journal->leftovers = calloc(queue->size, sizeof(*journal->leftovers));
    if (!journal->leftovers)
        return RING_NO_MEMORY;
    enum ring_error error = check(journal, queue, position);
    if (error)
        return error;
    /* Finish what push was doing. The second store comes last: a crash before it has all done
     * once more, and for that the links are there still. */
    for (uint32_t head = 0; head < queue->size; head++) {
        if (queue->heads[head].state != COMPLETING)
            continue;
        STORE(recover_clear, &journal->region->desc[head].inflight, 0);
        queue->heads[head].state = IDLE;
    }
    STORE(recover_used_idx, &journal->region->used_idx, queue->used_idx);
    return RING_OK;
}

void journal_free(struct journal *journal)
{
    free(journal->leftovers);
}
