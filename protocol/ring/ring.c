/* The device's half of a split virtqueue; the contract is in ring.h. */

#include "ring.h"
#include "journal.h"
#include "points.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian (2.7)");
_Static_assert(sizeof(void *) == 8, "a guest address has to fit a size_t");

/* virtio 1.2, sections 2.7.5, 2.7.6 and 2.7.8: the three parts of a ring. */

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };
enum { AVAIL_F_NO_INTERRUPT = 1 };
enum { USED_F_NO_NOTIFY = 1 };

struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct virtq_avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* used_event follows the last entry */
};

struct virtq_used_elem {
    uint32_t id;
    uint32_t len;
};

struct virtq_used {
    uint16_t flags;
    uint16_t idx;
    struct virtq_used_elem ring[]; /* avail_event follows the last entry */
};

/* There is no cursor into the avail ring: it is used_idx + in_flight (mod 2^16), because
 * every chain popped is either in flight or used. */
struct ring {
    const uint8_t *desc;
    struct virtq_avail *avail;
    struct virtq_used *used;
    uint32_t size;
    uint32_t max_chain;
    bool event_idx;
    bool indirect;
    uint16_t used_idx; /* ours; the copy in guest memory is never read back */
    uint32_t in_flight;
    enum ring_error broken;
    struct ring_counters counters;
    struct head *heads; /* one a descriptor */
    uint32_t region_count;
    uint64_t position;
    struct journal journal;
    struct ring_region regions[];
};

/* Guest memory. */

static uint16_t load16(const uint16_t *where)
{
    return __atomic_load_n(where, __ATOMIC_RELAXED);
}

static void full_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Where len bytes at gpa are, or NULL unless one region holds them all. No sum is formed, so
 * none can overflow. */
static uint8_t *translate(const struct ring *ring, uint64_t gpa, uint64_t len)
{
    for (uint32_t i = 0; i < ring->region_count; i++) {
        const struct ring_region *region = &ring->regions[i];
        if (gpa < region->gpa || gpa - region->gpa >= region->size)
            continue;
        if (len > region->size - (gpa - region->gpa))
            return NULL;
        return region->host + (gpa - region->gpa);
    }
    return NULL;
}

/* The one copy of a descriptor. An indirect table may lie at any address, hence memcpy; the
 * fence keeps the compiler from reading the original again where the copy is meant. */
static struct virtq_desc fetch(const uint8_t *table, uint32_t index)
{
    struct virtq_desc copy;
    memcpy(&copy, table + sizeof(copy) * index, sizeof(copy));
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return copy;
}

/* Walking a chain. */

struct table {
    const uint8_t *descriptors;
    uint32_t entries;
    bool indirect;
};

static enum ring_chain_error enter_indirect(const struct ring *ring, const struct virtq_desc *desc,
                                            struct table *table)
{
    if (!ring->indirect)
        return RING_CHAIN_INDIRECT_UNEXPECTED;
    if (table->indirect)
        return RING_CHAIN_INDIRECT_NESTED;
    if (desc->flags & DESC_F_NEXT)
        return RING_CHAIN_INDIRECT_WITH_NEXT;
    if (desc->len == 0 || desc->len % sizeof(struct virtq_desc))
        return RING_CHAIN_INDIRECT_LENGTH;
    if (desc->len / sizeof(struct virtq_desc) > ring->size)
        return RING_CHAIN_INDIRECT_TOO_LARGE;
    table->descriptors = translate(ring, desc->addr, desc->len);
    if (!table->descriptors)
        return RING_CHAIN_INDIRECT_OUTSIDE_RAM;
    table->entries = desc->len / sizeof(struct virtq_desc);
    table->indirect = true;
    return RING_CHAIN_OK;
}

static enum ring_chain_error add_segment(const struct ring *ring, const struct virtq_desc *desc,
                                         struct ring_chain *chain, struct iovec *segments,
                                         bool *writing)
{
    bool writable = desc->flags & DESC_F_WRITE;
    if (*writing && !writable)
        return RING_CHAIN_READABLE_AFTER_WRITABLE;
    *writing = writable;
    if (desc->len == 0)
        return RING_CHAIN_OK;
    uint8_t *host = translate(ring, desc->addr, desc->len);
    if (!host)
        return RING_CHAIN_BUFFER_OUTSIDE_RAM;
    uint64_t total = (uint64_t)chain->readable_size + chain->writable_size + desc->len;
    if (total > UINT32_MAX)
        return RING_CHAIN_TOO_MANY_BYTES;
    segments[chain->readable + chain->writable] = (struct iovec){host, desc->len};
    *(writable ? &chain->writable : &chain->readable) += 1;
    *(writable ? &chain->writable_size : &chain->readable_size) += desc->len;
    return RING_CHAIN_OK;
}

/* Ends, whatever the tables hold: every turn counts a descriptor, or enters the one table
 * that may be entered. */
static enum ring_chain_error walk(const struct ring *ring, struct ring_chain *chain,
                                  struct iovec *segments)
{
    struct table table = {ring->desc, ring->size, false};
    uint32_t index = chain->head, seen = 0;
    bool writing = false;
    for (;;) {
        struct virtq_desc desc = fetch(table.descriptors, index);
        enum ring_chain_error error;
        if (desc.flags & DESC_F_INDIRECT) {
            error = enter_indirect(ring, &desc, &table);
            if (error)
                return error;
            index = 0;
            continue;
        }
        if (++seen > ring->max_chain)
            return RING_CHAIN_TOO_LONG;
        error = add_segment(ring, &desc, chain, segments, &writing);
        if (error || !(desc.flags & DESC_F_NEXT))
            return error;
        if (desc.next >= table.entries)
            return RING_CHAIN_NEXT_OUT_OF_RANGE;
        index = desc.next;
    }
}

/* Pop. */

static uint16_t cursor(const struct ring *ring)
{
    return (uint16_t)(ring->used_idx + ring->in_flight);
}

/* Inline where there is no journal: a call, and what it does to registers, is 5 % of a chain. */
static inline __attribute__((always_inline)) enum ring_error take_head(struct ring *ring, uint16_t *head)
{
    *head = load16(&ring->avail->ring[cursor(ring) & (ring->size - 1)]);
    if (*head >= ring->size)
        return RING_HEAD_OUT_OF_RANGE;
    if (ring->heads[*head].state != IDLE)
        return RING_HEAD_IN_FLIGHT;
    ring->in_flight++;
    return RING_OK;
}

static uint32_t left_over(const struct ring *ring)
{
    return ring->journal.leftover_count - ring->journal.resubmitted;
}

/* The same with a journal. Chains that a predecessor left in flight come first; in the avail ring
 * they are behind the cursor, where they may be overwritten. */
static __attribute__((noinline)) enum ring_error take_noted(struct ring *ring, uint16_t *head)
{
    if (left_over(ring)) {
        *head = ring->journal.leftovers[ring->journal.resubmitted++].head;
        return RING_OK;
    }
    enum ring_error error = take_head(ring, head);
    if (!error)
        journal_pop(&ring->journal, *head);
    return error;
}

static void pop_one(struct ring *ring, struct ring_chain *chain, struct iovec *segments)
{
    chain->error = walk(ring, chain, segments);
    if (chain->error) {
        *chain = (struct ring_chain){.head = chain->head, .error = chain->error};
        ring->counters.errors++;
    }
    ring->counters.chains++;
    ring->heads[chain->head] = (struct head){chain->writable_size, IN_FLIGHT};
}

int ring_pop(struct ring *ring, struct ring_chain *chains, uint32_t limit,
             struct iovec *segments, uint32_t capacity)
{
    uint32_t popped = 0, filled = 0;
    /* Acquire: entries and descriptors are read after the index that publishes them. */
    uint16_t waiting = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE) - cursor(ring);
    if (!ring->broken && waiting > ring->size)
        ring->broken = RING_AVAIL_JUMP;
    uint32_t there = left_over(ring) + waiting;
    bool journaled = ring->journal.region;
    while (!ring->broken && popped < limit && popped < there &&
           capacity - filled >= ring->max_chain) {
        struct ring_chain *chain = &chains[popped];
        *chain = (struct ring_chain){.first = filled};
        ring->broken = journaled ? take_noted(ring, &chain->head) : take_head(ring, &chain->head);
        if (ring->broken)
            break;
        pop_one(ring, chain, segments + filled);
        filled += chain->readable + chain->writable;
        popped++;
    }
    if (popped)
        ring->counters.batches++;
    else if (ring->broken)
        return -(int)ring->broken;
    return (int)popped;
}

/* Push. */

/* Marks every head of the batch, so that one named twice is noticed; undone on failure. */
static enum ring_push_error claim(struct ring *ring, const struct ring_completion *done,
                                  uint32_t count)
{
    enum ring_push_error error = RING_PUSH_OK;
    uint32_t claimed = 0;
    for (; claimed < count && !error; claimed++) {
        const struct ring_completion *one = &done[claimed];
        if (one->head >= ring->size || ring->heads[one->head].state != IN_FLIGHT)
            error = RING_PUSH_NOT_IN_FLIGHT;
        else if (one->written > ring->heads[one->head].writable_size)
            error = RING_PUSH_TOO_MUCH;
        else
            ring->heads[one->head].state = COMPLETING;
    }
    if (error)
        for (claimed--; claimed--;)
            ring->heads[done[claimed].head].state = IN_FLIGHT;
    return error;
}

/* 2.7.7.2: an interrupt is due when the entry at used_event was written by this batch. */
static bool wants_interrupt(const struct ring *ring, uint16_t before)
{
    if (!ring->event_idx)
        return !(load16(&ring->avail->flags) & AVAIL_F_NO_INTERRUPT);
    uint16_t used_event = load16(&ring->avail->ring[ring->size]);
    return (uint16_t)(ring->used_idx - used_event - 1) < (uint16_t)(ring->used_idx - before);
}

int ring_push(struct ring *ring, const struct ring_completion *done, uint32_t count)
{
    return ring_push_at(ring, done, count, ring->position);
}

int ring_push_at(struct ring *ring, const struct ring_completion *done, uint32_t count,
                 uint64_t position)
{
    enum ring_push_error error = claim(ring, done, count);
    if (error)
        return -(int)error;
    if (count == 0)
        return 0;
    uint16_t before = ring->used_idx;
    for (uint32_t i = 0; i < count; i++) {
        struct virtq_used_elem *elem = &ring->used->ring[ring->used_idx++ & (ring->size - 1)];
        *elem = (struct virtq_used_elem){done[i].head, done[i].written};
        REACHED(push_element);
        ring->heads[done[i].head].state = IDLE;
    }
    ring->in_flight -= count;
    ring->position = position;
    if (ring->journal.region)
        journal_prepare(&ring->journal, done, count, ring->used_idx, position);
    /* Data and elements are visible before the index that publishes them. */
    STORE(push_used_idx, &ring->used->idx, ring->used_idx);
    if (ring->journal.region)
        journal_settle(&ring->journal, done, count, ring->used_idx);
    /* The driver arms used_event and then looks at used.idx; we publish used.idx and then look
     * at used_event. Without a full fence both may miss each other. */
    full_fence();
    return wants_interrupt(ring, before);
}

/* Notifications from the driver. */

bool ring_is_waiting(const struct ring *ring)
{
    return ring->broken || left_over(ring) || load16(&ring->avail->idx) != cursor(ring);
}

bool ring_enable_kicks(struct ring *ring)
{
    if (ring->broken)
        return true;
    if (ring->event_idx)
        STORE(kicks_enable, (uint16_t *)&ring->used->ring[ring->size], cursor(ring));
    else
        STORE(kicks_enable, &ring->used->flags, 0);
    /* The same bargain as in ring_push, the other way round: arm, fence, look again. */
    full_fence();
    return ring_is_waiting(ring);
}

/* With EVENT_IDX there is nothing to do: flags has to stay 0 ("Available Buffer Notification
 * Suppression", device requirements), and the driver is past avail_event, so that it is silent
 * until the event is set again. */
void ring_disable_kicks(struct ring *ring)
{
    if (!ring->event_idx)
        STORE(kicks_disable, &ring->used->flags, USED_F_NO_NOTIFY);
}

/* Birth and death. */

static enum ring_error place(struct ring *ring, const struct ring_config *config)
{
    uint64_t size = config->size;
    if (config->desc % 16)
        return RING_DESC_MISALIGNED;
    if (config->avail % 2)
        return RING_AVAIL_MISALIGNED;
    if (config->used % 4)
        return RING_USED_MISALIGNED;
    /* The sizes of the table in 2.7; they include the event fields, negotiated or not. */
    ring->desc = translate(ring, config->desc, 16 * size);
    ring->avail = (struct virtq_avail *)translate(ring, config->avail, 6 + 2 * size);
    ring->used = (struct virtq_used *)translate(ring, config->used, 6 + 8 * size);
    if (!ring->desc)
        return RING_DESC_OUTSIDE_RAM;
    if (!ring->avail)
        return RING_AVAIL_OUTSIDE_RAM;
    return ring->used ? RING_OK : RING_USED_OUTSIDE_RAM;
}

/* Take up the queue where used.idx stands, and what the journal says about it. */
static enum ring_error resume(struct ring *ring, const struct ring_config *config)
{
    ring->used_idx = load16(&ring->used->idx);
    ring->position = config->position;
    if (!config->journal)
        return RING_OK;
    struct journal_queue queue = {ring->size, load16(&ring->avail->idx), ring->used_idx,
                                  ring->heads};
    enum ring_error error = journal_attach(&ring->journal, config->journal, &queue,
                                           &ring->position);
    ring->in_flight = ring->journal.leftover_count;
    return error;
}

struct ring *ring_new(const struct ring_config *config, const struct ring_region *regions,
                      uint32_t region_count, enum ring_error *error)
{
    uint32_t size = config->size;
    *error = RING_SIZE;
    if (size == 0 || size > RING_MAX_SIZE || (size & (size - 1)))
        return NULL;
    struct ring *ring = calloc(1, sizeof(*ring) + region_count * sizeof(*regions));
    struct head *heads = calloc(size, sizeof(*heads));
    *error = RING_NO_MEMORY;
    if (ring && heads) {
        ring->size = size;
        ring->max_chain = size < RING_MAX_SEGMENTS ? size : RING_MAX_SEGMENTS;
        ring->event_idx = config->event_idx;
        ring->indirect = config->indirect;
        ring->heads = heads;
        ring->region_count = region_count;
        memcpy(ring->regions, regions, region_count * sizeof(*regions));
        *error = place(ring, config);
        if (!*error)
            *error = resume(ring, config);
        if (!*error)
            return ring;
        journal_free(&ring->journal);
    }
    free(heads);
    free(ring);
    return NULL;
}

void ring_free(struct ring *ring)
{
    if (ring) {
        journal_free(&ring->journal);
        free(ring->heads);
    }
    free(ring);
}

uint32_t ring_in_flight(const struct ring *ring)
{
    return ring->in_flight;
}

uint16_t ring_used_idx(const struct ring *ring)
{
    return ring->used_idx;
}

uint64_t ring_position(const struct ring *ring)
{
    return ring->position;
}

struct ring_counters ring_counters(const struct ring *ring)
{
    return ring->counters;
}

void ring_store32(uint32_t *where, uint32_t value)
{
    __atomic_store_n(where, value, __ATOMIC_RELEASE);
}

uint32_t ring_load32(const uint32_t *where)
{
    return __atomic_load_n(where, __ATOMIC_ACQUIRE);
}

void ring_store64(uint64_t *where, uint64_t value)
{
    __atomic_store_n(where, value, __ATOMIC_RELEASE);
}

uint64_t ring_load64(const uint64_t *where)
{
    return __atomic_load_n(where, __ATOMIC_ACQUIRE);
}
