/* The mediator of one virtqueue; the contract is in mediator.h. */

#define _GNU_SOURCE /* qsort_r */
#include "mediator.h"

#include "arena.h"

#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian (2.7)");

/* A segment of a chain that the device has, by descriptor of the shadow ring, or a member of the
 * list of free ones. The table that the device sees is written from this and never read back. */
struct slot {
    uint8_t *host;
    uint32_t len;
    uint16_t next;
    bool writable;
};

/* A chain that the device has, by its head in the shadow ring; length 0 if it has none there. */
struct loan {
    uint32_t readable_size; /* bytes */
    uint32_t writable_size;
    uint64_t order;         /* in which it was lent */
    uint16_t length;        /* slots */
    uint16_t guest_head;
    bool returned; /* used by the device, and not settled yet */
};

/* Progress: a chain has at most as many descriptors as the guest's queue, and the shadow is no
 * smaller; what does not fit an empty arena is refused. So a chain can wait for either only while
 * the device has others. */
struct mediator {
    struct ring *guest;
    uint32_t guest_size;
    mediator_hook *hook;
    void *context;

    /* The shadow ring. */
    struct vring_desc *desc;
    struct vring_avail *avail;
    const struct vring_used *used;
    uint32_t size;
    struct arena arena;  /* without size the device sees the guest's own buffers */
    uint8_t *copies;     /* the arena's first byte here … */
    uint64_t copies_gpa; /* … and for the device */

    /* What we know of it. */
    uint16_t avail_idx; /* ahead of the one in shared memory until publish() */
    uint16_t used_idx;  /* up to where used was taken */
    uint32_t lent;      /* chains that the device has: as many as avail_idx is ahead of used_idx */
    uint64_t lent_ever;
    uint16_t free_first;
    uint32_t free_count;
    uint16_t *heads;              /* room for restore() to sort chains */
    struct slot *slots;           /* one a descriptor */
    struct loan *loans;           /* one a descriptor */
    uint32_t taken;               /* of these, used by the device, and not settled yet: */
    struct ring_completion *done; /* as many: there cannot be more */
    uint64_t too_large;           /* chains that no arena of this size would hold */
    enum mediator_error broken;

    /* The chain popped last; with waiting set it found too few descriptors, or no extent. */
    bool waiting;
    struct ring_chain chain;
    struct iovec segments[RING_MAX_SEGMENTS];

    uint32_t region_count;
    struct ring_region regions[];
};

/* Buffers: where the device finds a guest's bytes, in guest memory itself or in the arena. */

/* The guest address of a segment. Safe without an answer for "none": ring.c made the segment
 * from one of these regions, with which it was created. */
static uint64_t guest_address(const struct mediator *m, const uint8_t *host)
{
    const struct ring_region *region = m->regions;
    while ((uintptr_t)host - (uintptr_t)region->host >= region->size)
        region++;
    return region->gpa + (uint64_t)(host - region->host);
}

static void tell(const struct mediator *m, const struct slot *slot, uint32_t length)
{
    if (m->hook && length)
        m->hook(m->context, guest_address(m, slot->host), length);
}

static uint64_t aligned(uint32_t size)
{
    return ((uint64_t)size + ARENA_ALIGNMENT - 1) & ~(uint64_t)(ARENA_ALIGNMENT - 1);
}

/* Plain stores to shared memory: the device looks at a descriptor only after the avail.idx that
 * publish() stores; one that looks earlier deceives itself. The index is from our own list. */
static void write_descriptor(struct mediator *m, uint16_t index, uint64_t address, uint32_t length,
                             bool writable, bool more)
{
    m->desc[index] = (struct vring_desc){
        .addr = address,
        .len = length,
        .flags = (writable ? VRING_DESC_F_WRITE : 0) | (more ? VRING_DESC_F_NEXT : 0),
        .next = more ? m->slots[index].next : 0,
    };
}

static void show_originals(struct mediator *m, uint16_t head)
{
    uint16_t index = head;
    for (uint16_t left = m->loans[head].length; left; index = m->slots[index].next, left--) {
        const struct slot *slot = &m->slots[index];
        uint64_t gpa = slot->len ? guest_address(m, slot->host) : 0;
        write_descriptor(m, index, gpa, slot->len, slot->writable, left > 1);
    }
}

/* One descriptor for all that is readable, and one for all that is writable: a device must not
 * rely on framing (2.7.4). The readable bytes are copied now, and the copy is what the device may
 * change. Of the writable part nothing is cleared: what an earlier chain left there is bytes that
 * this very device has had in its hands. */
static void show_copies(struct mediator *m, uint16_t head)
{
    const struct loan *loan = &m->loans[head];
    uint32_t offset = m->arena.extents[head].offset;
    uint8_t *to = m->copies + offset;
    uint16_t index = head;
    for (uint16_t left = loan->length; left; index = m->slots[index].next, left--) {
        const struct slot *slot = &m->slots[index];
        if (slot->writable || !slot->len)
            continue;
        memcpy(to, slot->host, slot->len);
        to += slot->len;
    }
    uint64_t readable = m->copies_gpa + offset;
    uint64_t writable = readable + aligned(loan->readable_size);
    bool has_both = loan->readable_size && loan->writable_size;
    if (loan->readable_size || !loan->writable_size)
        write_descriptor(m, head, readable, loan->readable_size, false, has_both);
    if (loan->writable_size)
        write_descriptor(m, has_both ? m->slots[head].next : head, writable, loan->writable_size,
                         true, false);
}

static void show(struct mediator *m, uint16_t head)
{
    (m->arena.size ? show_copies : show_originals)(m, head);
}

/* Without an arena the whole buffer, whatever length the device reported: one that reports too
 * little, or writes elsewhere in the chain than at its start, must not leave code behind that is
 * not the code which was translated. With one, what is copied is what was written. Returns the
 * last of the chain's slots: our own links, of a chain that is lent, so in range. */
static uint16_t take_back(struct mediator *m, uint16_t head, uint32_t written)
{
    const struct loan *loan = &m->loans[head];
    const uint8_t *from = NULL;
    if (m->arena.size)
        from = m->copies + m->arena.extents[head].offset + aligned(loan->readable_size);
    uint16_t index = head;
    for (uint16_t left = loan->length; left; left--) {
        const struct slot *slot = &m->slots[index];
        if (slot->writable && from) {
            uint32_t length = written < slot->len ? written : slot->len;
            memcpy(slot->host, from, length);
            tell(m, slot, length);
            from += length;
            written -= length;
        } else if (slot->writable) {
            tell(m, slot, slot->len);
        }
        if (left > 1)
            index = slot->next;
    }
    return index;
}

/* From the guest to the device. */

/* A chain without a segment, of empty descriptors only, still takes one, which is empty. */
static uint32_t slots_of(const struct ring_chain *chain)
{
    uint32_t segments = (uint32_t)chain->readable + chain->writable;
    return segments ? segments : 1;
}

static uint64_t arena_need(const struct ring_chain *chain)
{
    return aligned(chain->readable_size) + aligned(chain->writable_size);
}

/* The caller has seen that enough slots are free, so the list does not end in between, and has
 * given an extent to the first of them. */
static void lend(struct mediator *m)
{
    const struct ring_chain *chain = &m->chain;
    uint32_t segments = (uint32_t)chain->readable + chain->writable, length = slots_of(chain);
    uint16_t head = m->free_first, index = head;
    for (uint32_t i = 0; i < length; i++) {
        struct slot *slot = &m->slots[index];
        const struct iovec *segment = &m->segments[i];
        *slot = (struct slot){.next = slot->next};
        if (i < segments) {
            slot->host = segment->iov_base;
            slot->len = (uint32_t)segment->iov_len;
            slot->writable = i >= chain->readable;
        }
        index = slot->next;
    }
    m->free_first = index;
    m->free_count -= length;
    m->loans[head] = (struct loan){chain->readable_size, chain->writable_size, m->lent_ever++,
                                   (uint16_t)length, chain->head, false};
    m->lent++;
    show(m, head);
    /* Plain, as above. In range by the mask; the entry is free, for the device has fewer chains
     * than there are descriptors, which is the size of this ring. */
    m->avail->ring[m->avail_idx++ & (m->size - 1)] = head;
}

/* The driver made a mistake: the device is spared it, and the answer is as it would give it. */
static void refuse(struct mediator *m, struct mediator_outcome *outcome)
{
    struct ring_completion done = {m->chain.head, 0};
    /* Cannot fail: the chain was popped just now. */
    if (ring_push(m->guest, &done, 1) > 0)
        outcome->interrupt_guest = true;
}

/* One chain of the guest's; false when there is none, or none that can go on now. */
static bool move_one(struct mediator *m, struct mediator_outcome *outcome)
{
    if (!m->waiting) {
        int popped = ring_pop(m->guest, &m->chain, 1, m->segments, RING_MAX_SEGMENTS);
        if (popped < 0)
            outcome->guest = (enum ring_error)-popped;
        if (popped <= 0)
            return false;
    }
    uint64_t need = m->arena.size ? arena_need(&m->chain) : 0;
    bool too_large = need > m->arena.size;
    m->too_large += too_large;
    if (m->chain.error || too_large) {
        refuse(m, outcome);
        return true;
    }
    m->waiting = slots_of(&m->chain) > m->free_count ||
                 (need && !arena_take(&m->arena, m->free_first, need));
    if (m->waiting)
        return false;
    lend(m);
    return true;
}

/* Release: descriptors and entries are visible before the index that publishes them. No fence
 * after it, for there is no flag to look at: we ring whenever something was moved. */
static void publish(struct mediator *m)
{
    __atomic_store_n(&m->avail->idx, m->avail_idx, __ATOMIC_RELEASE);
}

static void move(struct mediator *m, struct mediator_outcome *outcome)
{
    uint16_t before = m->avail_idx;
    /* The bound is for a guest that laid its avail ring over its used ring. Of others no more
     * than a queue is waiting, beside the chain that was popped before, for they stand still. */
    for (uint32_t i = 0; i <= m->guest_size && move_one(m, outcome); i++)
        ;
    outcome->ring_device = m->avail_idx != before;
    if (outcome->ring_device)
        publish(m);
    /* When a chain waits, completions lead to the next look; else the guest's next kick does. A
     * guest that runs meanwhile may have added chains, and rung before we asked it to. */
    if (m->waiting)
        ring_disable_kicks(m->guest);
    else
        outcome->more = ring_enable_kicks(m->guest) && outcome->guest == RING_OK;
}

struct mediator_outcome mediator_kick(struct mediator *m)
{
    struct mediator_outcome outcome = {.device = m->broken};
    if (!m->broken)
        move(m, &outcome);
    return outcome;
}

/* From the device to the guest. */

/* Checks the entry and writes it down with the shadow's head. Each field is read once; what is
 * read has no order to keep, for the acquire of used.idx came before. */
static enum mediator_error take_element(struct mediator *m, uint16_t at,
                                        struct ring_completion *done)
{
    const struct vring_used_elem *elem = &m->used->ring[at & (m->size - 1)];
    uint32_t id = __atomic_load_n(&elem->id, __ATOMIC_RELAXED);
    uint32_t written = __atomic_load_n(&elem->len, __ATOMIC_RELAXED);
    if (id >= m->size)
        return MEDIATOR_ID_OUT_OF_RANGE;
    struct loan *loan = &m->loans[id];
    if (loan->length == 0 || loan->returned)
        return MEDIATOR_ID_NOT_IN_FLIGHT;
    if (written > loan->writable_size)
        return MEDIATOR_TOO_MUCH_WRITTEN;
    loan->returned = true;
    *done = (struct ring_completion){id, written};
    return MEDIATOR_OK;
}

/* Note which chains came back, all checked; on a fault some may be marked as returned, which
 * nobody looks at any more, and nothing that was taken before is settled either. */
static void take_used(struct mediator *m)
{
    /* Acquire: elements, and the data in the buffers, were written before this index. */
    uint16_t count = __atomic_load_n(&m->used->idx, __ATOMIC_ACQUIRE) - m->used_idx;
    if (count > m->lent)
        m->broken = MEDIATOR_USED_JUMP;
    for (uint16_t i = 0; i < count && !m->broken; i++)
        m->broken = take_element(m, m->used_idx + i, &m->done[m->taken + i]);
    if (m->broken)
        return;
    m->used_idx += count;
    m->lent -= count;
    m->taken += count;
}

/* Returns the guest's name of the chain. */
static uint16_t settle(struct mediator *m, uint16_t head, uint32_t written)
{
    struct loan *loan = &m->loans[head];
    uint16_t last = take_back(m, head, written);
    if (m->arena.size && (loan->readable_size || loan->writable_size))
        arena_give_back(&m->arena, head);
    m->slots[last].next = m->free_first;
    m->free_first = head;
    m->free_count += loan->length;
    loan->length = 0;
    return loan->guest_head;
}

struct mediator_outcome mediator_complete(struct mediator *m)
{
    struct mediator_outcome outcome = {0};
    if (!m->broken)
        take_used(m);
    outcome.device = m->broken;
    uint32_t count = m->broken ? 0 : m->taken;
    m->taken = 0;
    for (uint32_t i = 0; i < count; i++)
        m->done[i].head = settle(m, (uint16_t)m->done[i].head, m->done[i].written);
    /* Cannot fail: each head was popped, is named once, and has room for what was written. */
    outcome.interrupt_guest = ring_push(m->guest, m->done, count) > 0;
    if (count && m->waiting)
        move(m, &outcome);
    return outcome;
}

/* Birth and death. */

/* Where a part of the shadow ring is, or NULL. No sum is formed, so none can overflow. The host
 * address has to be aligned too, or the accesses above were not atomic. */
static void *part(const struct mediator_config *config, uint64_t gpa, uint64_t size,
                  uint64_t align)
{
    const struct ring_region *memory = &config->shadow_memory;
    if (gpa < memory->gpa || gpa - memory->gpa > memory->size ||
        size > memory->size - (gpa - memory->gpa))
        return NULL;
    uint8_t *host = memory->host + (gpa - memory->gpa);
    return gpa % align || (uintptr_t)host % align ? NULL : host;
}

/* Alignments and sizes are those of the table in 2.7; the event fields count, unused. */
static bool place_shadow(struct mediator *m, const struct mediator_config *config)
{
    const struct ring_config *shadow = &config->shadow;
    uint64_t size = shadow->size;
    if (size > RING_MAX_SIZE || (size & (size - 1)) || size < config->guest.size)
        return false;
    m->desc = part(config, shadow->desc, 16 * size, VRING_DESC_ALIGN_SIZE);
    m->avail = part(config, shadow->avail, 6 + 2 * size, VRING_AVAIL_ALIGN_SIZE);
    m->used = part(config, shadow->used, 6 + 8 * size, VRING_USED_ALIGN_SIZE);
    if (!m->desc || !m->avail || !m->used)
        return false;
    memset(m->desc, 0, 16 * size);
    memset(m->avail, 0, 6 + 2 * size);
    memset((void *)m->used, 0, 6 + 8 * size);
    m->size = shadow->size;
    return true;
}

static bool place_arena(struct mediator *m, const struct mediator_config *config)
{
    m->copies = part(config, config->arena, config->arena_size, ARENA_ALIGNMENT);
    m->copies_gpa = config->arena;
    return !config->arena_size || m->copies;
}

static bool allocate(struct mediator *m, uint32_t arena_size)
{
    m->heads = calloc(m->size, sizeof(*m->heads));
    m->slots = calloc(m->size, sizeof(*m->slots));
    m->loans = calloc(m->size, sizeof(*m->loans));
    m->done = calloc(m->size, sizeof(*m->done));
    if (!m->heads || !m->slots || !m->loans || !m->done ||
        !arena_init(&m->arena, arena_size, m->size))
        return false;
    /* Behind the last of the list is no index; free_count keeps everybody from going there. */
    for (uint32_t i = 0; i < m->size; i++)
        m->slots[i].next = (uint16_t)(i + 1);
    m->free_count = m->size;
    return true;
}

static void discard(struct mediator *m)
{
    ring_free(m->guest);
    free(m->heads);
    free(m->slots);
    free(m->loans);
    free(m->done);
    arena_free(&m->arena);
    free(m);
}

struct mediator *mediator_new(const struct mediator_config *config,
                              const struct ring_region *regions, uint32_t region_count,
                              struct mediator_outcome *outcome)
{
    *outcome = (struct mediator_outcome){.device = MEDIATOR_NO_MEMORY};
    struct mediator *m = calloc(1, sizeof(*m) + region_count * sizeof(*regions));
    if (!m)
        return NULL;
    m->hook = config->hook;
    m->context = config->context;
    m->region_count = region_count;
    memcpy(m->regions, regions, region_count * sizeof(*regions));
    m->guest_size = config->guest.size;
    m->guest = ring_new(&config->guest, regions, region_count, &outcome->guest);
    if (m->guest && !(place_shadow(m, config) && place_arena(m, config)))
        outcome->device = MEDIATOR_SHADOW_MISPLACED;
    else if (m->guest && allocate(m, config->arena_size))
        return m;
    discard(m);
    return NULL;
}

void mediator_free(struct mediator *m)
{
    for (uint32_t head = 0; m && head < m->size; head++)
        take_back(m, (uint16_t)head, 0);
    if (m)
        discard(m);
}

static int by_order(const void *one, const void *other, void *mediator)
{
    const struct loan *loans = ((const struct mediator *)mediator)->loans;
    uint64_t a = loans[*(const uint16_t *)one].order, b = loans[*(const uint16_t *)other].order;
    return (a > b) - (a < b);
}

/* What a device has popped it has popped in the order of the ring: so what a journal says is in
 * flight comes first here, too, and a successor that goes by it finds what is behind where it
 * stood. One that keeps none finds all of it. */
void mediator_restore(struct mediator *m)
{
    uint32_t count = 0;
    if (!m->broken)
        take_used(m);
    if (m->broken)
        return;
    for (uint32_t head = 0; head < m->size; head++) {
        if (!m->loans[head].length || m->loans[head].returned)
            continue;
        show(m, (uint16_t)head);
        m->heads[count++] = (uint16_t)head;
    }
    qsort_r(m->heads, count, sizeof(*m->heads), by_order, m);
    for (uint32_t i = 0; i < count; i++)
        m->avail->ring[(m->used_idx + i) & (m->size - 1)] = m->heads[i];
    m->avail->flags = 0;
    publish(m);
}

uint32_t mediator_in_flight(const struct mediator *m)
{
    return ring_in_flight(m->guest);
}

struct ring_counters mediator_counters(const struct mediator *m)
{
    struct ring_counters counters = ring_counters(m->guest);
    counters.errors += m->too_large;
    return counters;
}

uint64_t mediator_too_large(const struct mediator *m)
{
    return m->too_large;
}

uint32_t mediator_largest_chain(uint32_t arena_size)
{
    uint32_t lost = 2 * (ARENA_ALIGNMENT - 1);
    return arena_size > lost ? arena_size - lost : 0;
}
